"""Whether tokens go where there is something to see: tokens per segment beside measures of how rich the segments are.

Letters: S segments of all videos of a row.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from langdc.config import MemberConfig, check
from langdc.data.records import Record
from langdc.evaluation import statistics, tasks
from langdc.evaluation.rows import Row
from langdc.evaluation.statistics import Estimate
from langdc.video import read_frames

MEASURES = {"densities": "density", "motion": "motion", "edges": "edge entropy"}
"""What lines of videos may say of each segment, and how it is called."""
LEVELS = 12
"""So many different values are shown one by one; more are put into BINS of about as many segments each."""
BINS = 8
SHOWN = 10
PICTURE = 160
"""Pixels of the longer side of a picture on the page."""


@dataclass(frozen=True)
class Bin:
    """Segments of about the same richness: their mean richness, and their mean tokens with its interval."""

    richness: float
    tokens: Estimate


@dataclass(frozen=True)
class Measure:
    """One measure of richness [S], and its rank correlation with the tokens."""

    name: str
    values: Sequence[float]
    rho: Estimate
    bins: Sequence[Bin]


@dataclass(frozen=True)
class Case:
    """A segment. `gap`: its rank by tokens less its rank by richness, as shares of all segments, from -1 to 1."""

    video: str
    segment: int
    segments: int
    tokens: int
    richness: dict[str, float]
    gap: float
    caption: str | None
    target: str | None


@dataclass(frozen=True, eq=False)
class Adaptive:
    """A row whose segments get different numbers of tokens: [S] of each."""

    row: Row
    videos: Sequence[dict]
    places: Sequence[tuple[int, int]]
    """Number of the video, and of its segment."""
    tokens: Sequence[int]
    measures: Sequence[Measure]

    @cached_property
    def gaps(self) -> np.ndarray:
        """How much more a segment got, by rank, than its richness would give it; mean rank of several measures."""
        rich = np.mean([rankdata(measure.values) for measure in self.measures], axis=0)
        return (rankdata(self.tokens) - rankdata(rich)) / len(self.tokens)

    def cases(self, worst: bool) -> list[Case]:
        """The SHOWN segments with the largest gap, or with the smallest; no more than one of a video."""
        order = np.argsort(-np.abs(self.gaps) if worst else np.abs(self.gaps), kind="stable")
        found: dict[int, int] = {}
        for number in order.tolist():
            found.setdefault(self.places[number][0], number)
            if len(found) == SHOWN:
                break
        return [self._case(number) for number in found.values()]

    def _case(self, number: int) -> Case:
        place, segment = self.places[number]
        video = self.videos[place]
        segments = len(video["segment_tokens"])
        said = video.get("captions") or []
        targets = video.get("targets") or []
        return Case(
            video["video"],
            segment,
            segments,
            self.tokens[number],
            {measure.name: measure.values[number] for measure in self.measures},
            float(self.gaps[number]),
            said[segment] if len(said) == segments else None,
            targets[segment] if len(targets) == segments else None,
        )


def adaptive(row: Row) -> Adaptive | None:
    """The tokens of a row beside the richness of its segments; None where tokens never vary or nothing is known.

    The densities of the records are what counts; motion and edge entropy stand in where there are none.
    """
    for names in (("densities",), ("motion", "edges")):
        known = [video for video in row.videos if all(_fits(video, name) for name in names)]
        tokens = [count for video in known for count in video["segment_tokens"]]
        if len(tokens) > 2 and len(set(tokens)) > 1:
            clusters = [video["video"] for video in known for _ in video["segment_tokens"]]
            places = [(v, s) for v, video in enumerate(known) for s in range(len(video["segment_tokens"]))]
            measures = [_measure(MEASURES[name], known, name, tokens, clusters) for name in names]
            return Adaptive(row, known, places, tokens, measures)
    return None


def _fits(video: dict, name: str) -> bool:
    return bool(video.get(name)) and len(video[name]) == len(video["segment_tokens"])


def _measure(title: str, videos: list[dict], name: str, tokens: list[int], clusters: list[str]) -> Measure:
    values = [value for video in videos for value in video[name]]
    rho = statistics.rank_correlation(values, tokens, clusters)
    return Measure(title, values, rho, _bins(np.asarray(values, dtype=float), tokens, clusters))


def _bins(values: np.ndarray, tokens: list[int], clusters: list[str]) -> list[Bin]:
    levels = np.unique(values)
    if len(levels) > LEVELS:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
        where = np.searchsorted(edges, values, side="right")
    else:
        where = np.searchsorted(levels, values)
    found = []
    for level in np.unique(where):
        inside = np.flatnonzero(where == level).tolist()
        mean = statistics.mean([tokens[n] for n in inside], [clusters[n] for n in inside])
        found.append(Bin(float(values[inside].mean()), mean))
    return found


class Pictures:
    """Frames of a run's videos as they are now, as data URIs. `missing` says why there are none."""

    def __init__(self, header: dict) -> None:
        self.missing = ""
        self._records: dict[str, Record] = {}
        self._seen: dict[str, Tensor] = {}
        try:
            config = check(MemberConfig, header["config"]["task"], "task")
            self._task = tasks.build(config.name, **config.settings)
            self._records = {record.id: record for record in self._task.records}
        except (ValueError, OSError) as error:
            self.missing = str(error)

    def of(self, case: Case) -> str | None:
        """The frame in the middle of a segment; None if it cannot be read."""
        record = self._records.get(case.video)
        if record is None:
            return None
        try:
            return _jpeg(self._frames(record.id, case.segments)[case.segment])
        except (ValueError, OSError) as error:
            self.missing = self.missing or str(error)
            return None

    def _frames(self, name: str, segments: int) -> Tensor:
        if name not in self._seen:
            clip = self._task.clip(self._records[name])
            read = read_frames(self._task.path(clip), frames=segments, start=clip.start, end=clip.end, fps=clip.fps)
            self._seen[name] = read.pixels
        return self._seen[name]


def _jpeg(pixels: Tensor) -> str:
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.thumbnail((PICTURE, PICTURE))
    if max(picture.size) < PICTURE:  # small ones would be blurred by the browser
        scale = PICTURE // max(picture.size)
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
