"""Whether tokens follow content: tokens per segment beside measures of how rich the segments are.

Letters: S segments of all videos of an entry.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from langdc.config import MemberConfig, check
from langdc.data.records import Record
from langdc.evaluate import statistics, tasks
from langdc.evaluate.results import Result
from langdc.evaluate.statistics import Estimate
from langdc.video import read_frames

MEASURES = {"densities": "density", "motion": "motion", "edges": "edge entropy"}
"""Fields of video lines with a number per segment, and what the page calls them."""
LEVELS = 12
"""Up to this number of different values each is a bin; more are put into BINS of about equal size."""
BINS = 8
SHOWN = 10
PICTURE = 160
"""Pixels of the longer side of a picture on the page."""


@dataclass(frozen=True)
class _Measure:
    """A measure of richness [S], its rank correlation with the tokens, and mean tokens by mean richness of its bins."""

    name: str
    values: Sequence[float]
    rho: Estimate
    bins: Sequence[tuple[float, Estimate]]


@dataclass(frozen=True)
class _Case:
    """A segment. `gap`: its rank by tokens less its rank by richness, as fractions of all segments, from -1 to 1."""

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
    """An entry whose segments get different numbers of tokens: [S] of each."""

    result: Result
    videos: Sequence[dict]
    places: Sequence[tuple[int, int]]
    """Index of the video, and of its segment."""
    tokens: Sequence[int]
    measures: Sequence[_Measure]

    @classmethod
    def of(cls, result: Result) -> "Adaptive | None":
        """The tokens of an entry beside the richness of its segments; None where tokens never vary or nothing is known.

        The densities of the records count; where there are none, motion and edge entropy stand in.
        """
        for names in (("densities",), ("motion", "edges")):
            known = [video for video in result.videos if all(_fits(video, name) for name in names)]
            tokens = [count for video in known for count in video["segment_tokens"]]
            if len(tokens) > 2 and len(set(tokens)) > 1:
                clusters = [video["video"] for video in known for _ in video["segment_tokens"]]
                places = [(v, s) for v, video in enumerate(known) for s in range(len(video["segment_tokens"]))]
                measures = [_measure(known, name, tokens, clusters) for name in names]
                return cls(result, known, places, tokens, measures)
        return None

    @cached_property
    def gaps(self) -> np.ndarray:
        """How much more a segment got, by rank, than its richness would give it; mean rank of several measures."""
        rich = np.mean([rankdata(measure.values) for measure in self.measures], axis=0)
        return (rankdata(self.tokens) - rankdata(rich)) / len(self.tokens)

    def cases(self, worst: bool) -> list[_Case]:
        """The SHOWN segments with the largest gap, or with the smallest; at most one per video."""
        order = np.argsort(-np.abs(self.gaps) if worst else np.abs(self.gaps), kind="stable")
        by_video: dict[int, int] = {}
        for index in order.tolist():
            by_video.setdefault(self.places[index][0], index)
        return [self._case(index) for index in list(by_video.values())[:SHOWN]]

    def _case(self, index: int) -> _Case:
        place, segment = self.places[index]
        video = self.videos[place]
        count = len(video["segment_tokens"])
        texts = [video.get(name) or [] for name in ("captions", "targets")]
        caption, target = (of[segment] if len(of) == count else None for of in texts)
        richness = {measure.name: measure.values[index] for measure in self.measures}
        gap = float(self.gaps[index])
        return _Case(video["video"], segment, count, self.tokens[index], richness, gap, caption, target)


def _fits(video: dict, name: str) -> bool:
    return bool(video.get(name)) and len(video[name]) == len(video["segment_tokens"])


def _measure(videos: list[dict], name: str, tokens: list[int], clusters: list[str]) -> _Measure:
    values = pd.Series([value for video in videos for value in video[name]], dtype=float)
    bins = values if values.nunique() <= LEVELS else pd.qcut(values, BINS, labels=False, duplicates="drop")
    means = []
    for _, inside in values.groupby(bins):
        rows = inside.index.tolist()
        means.append((float(inside.mean()), statistics.mean([tokens[n] for n in rows], [clusters[n] for n in rows])))
    rho = statistics.rank_correlation(values.tolist(), tokens, clusters)
    return _Measure(MEASURES[name], values.tolist(), rho, means)


class Pictures:
    """Frames of an evaluation's videos as they are now, as data URIs. `missing` says why there are none."""

    def __init__(self, header: dict) -> None:
        self.missing = ""
        self._records: dict[str, Record] = {}
        self._frames: dict[str, Tensor] = {}
        try:
            config = check(MemberConfig, header["config"]["task"], "task")
            self._task = tasks.build(config.name, **config.settings)
            self._records = {record.id: record for record in self._task.records}
        except (ValueError, OSError) as error:
            self.missing = str(error)

    def of(self, case: _Case) -> str | None:
        """The frame in the middle of a segment; None if it cannot be read."""
        record = self._records.get(case.video)
        if record is None:
            return None
        try:
            return _jpeg(self._frames_of(record, case.segments)[case.segment])
        except (ValueError, OSError) as error:
            self.missing = self.missing or str(error)
            return None

    def _frames_of(self, record: Record, segments: int) -> Tensor:
        if record.id not in self._frames:
            part = self._task.clip(record)
            read = read_frames(self._task.path(part), frames=segments, start=part.start, end=part.end, fps=part.fps)
            self._frames[record.id] = read.pixels
        return self._frames[record.id]


def _jpeg(pixels: Tensor) -> str:
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.thumbnail((PICTURE, PICTURE))
    if max(picture.size) < PICTURE:  # small ones would be blurred by the browser
        scale = PICTURE // max(picture.size)
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
