"""Whether tokens follow content: tokens per segment (S of all videos) beside measures of how rich segments are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import rankdata

from langdc.config import MemberConfig, check
from langdc.data.records import Record
from langdc.evaluate import statistics, tasks
from langdc.evaluate.results import Result
from langdc.evaluate.statistics import Estimate
from langdc.video import jpeg_url, read_frames

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
class _Segment:
    """A segment, one of `segments` of its video, with its richness by measure, and its caption and the record's.

    `file`: the media file of `video`, an id. `gap`: its rank by tokens less its rank by richness (the mean rank of
    several measures), as a fraction of all segments, from -1 to 1.
    """

    video: str
    file: str
    segment: int
    segments: int
    tokens: int
    richness: dict[str, float]
    caption: str | None
    target: str | None
    gap: float = 0.0


@dataclass(frozen=True, eq=False)
class Adaptive:
    """An entry whose segments get different numbers of tokens."""

    result: Result
    segments: Sequence[_Segment]
    tokens: Sequence[int]
    measures: Sequence[_Measure]

    @classmethod
    def of(cls, result: Result) -> "Adaptive | None":
        """Compare with the density in the records, else with motion and edge entropy; None if tokens never vary."""
        for names in (("densities",), ("motion", "edges")):
            segments = [segment for video in result.videos for segment in _segments(video, names)]
            tokens = [segment.tokens for segment in segments]
            if len(tokens) > 2 and len(set(tokens)) > 1:
                measures = [_measure(segments, tokens, MEASURES[name]) for name in names]
                rich = np.mean([rankdata(measure.values) for measure in measures], axis=0)
                gaps = ((rankdata(tokens) - rankdata(rich)) / len(tokens)).tolist()
                found = [replace(segment, gap=gap) for segment, gap in zip(segments, gaps, strict=True)]
                return cls(result, found, tokens, measures)
        return None

    def cases(self, worst: bool) -> list[_Segment]:
        """The SHOWN segments with the largest gap, or with the smallest; at most one per video."""
        by_video: dict[str, _Segment] = {}
        for segment in sorted(self.segments, key=lambda one: abs(one.gap), reverse=worst):
            by_video.setdefault(segment.video, segment)
        return list(by_video.values())[:SHOWN]


def _segments(video: dict, names: Sequence[str]) -> Iterator[_Segment]:
    """The segments of a video with the measures of these names; none where one of them is unknown."""
    count, file = len(video["segment_tokens"]), video.get("file", video["video"])
    measures = {MEASURES[name]: video.get(name) or [] for name in names}
    if all(len(values) == count for values in measures.values()):
        texts = [video.get(name) or [] for name in ("captions", "targets")]
        for index, tokens in enumerate(video["segment_tokens"]):
            caption, target = (of[index] if len(of) == count else None for of in texts)
            richness = {measure: values[index] for measure, values in measures.items()}
            yield _Segment(video["video"], file, index, count, tokens, richness, caption, target)


def _measure(segments: Sequence[_Segment], tokens: Sequence[int], name: str) -> _Measure:
    clusters = [segment.file for segment in segments]
    values = pd.Series([segment.richness[name] for segment in segments], dtype=float)
    bins = values if values.nunique() <= LEVELS else pd.qcut(values, BINS, labels=False, duplicates="drop")
    means = []
    for _, inside in values.groupby(bins):
        rows = inside.index.tolist()
        means.append((float(inside.mean()), statistics.mean([tokens[n] for n in rows], [clusters[n] for n in rows])))
    rho = statistics.rank_correlation(values.tolist(), tokens, clusters)
    return _Measure(name, values.tolist(), rho, means)


class Pictures:
    """Frames of an evaluation's videos as they are now, as data URIs. `missing` says why there are none."""

    def __init__(self, header: dict) -> None:
        self.missing = ""
        self._records: dict[str, Record] = {}
        try:
            config = check(MemberConfig, header["config"]["task"], "task")
            self._task = tasks.build_task(config, header.get("allow_outside", False))
            self._records = {record.id: record for record in self._task.records}
        except (ValueError, OSError) as error:
            self.missing = str(error)

    def of(self, case: _Segment) -> str | None:
        """The frame in the middle of a segment; None if it cannot be read."""
        record = self._records.get(case.video)
        if record is None:
            return None
        try:
            part = self._task.clip(record)
            path = self._task.path(part)
            read = read_frames(path, frames=case.segments, start=part.start, end=part.end, fps=part.fps)
            picture = Image.fromarray(read.pixels[case.segment].permute(1, 2, 0).numpy())
            picture.thumbnail((PICTURE, PICTURE))
            if max(picture.size) < PICTURE:  # small ones would be blurred by the browser
                scale = PICTURE // max(picture.size)
                picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
            return jpeg_url(picture, quality=80)
        except (ValueError, OSError) as error:
            self.missing = self.missing or str(error)
            return None
