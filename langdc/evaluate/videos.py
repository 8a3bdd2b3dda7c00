"""Videos that were opened: decoded and encoded once for all entries with the same encoders and sampling."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from langdc.config import FeatureType
from langdc.data.records import Record
from langdc.evaluate.controls import fingerprint
from langdc.evaluate.folder import LineFile
from langdc.evaluate.richness import richness
from langdc.features import FeatureStore, FrameSpec, preprocessing_hash, read_spec
from langdc.hashing import text_hash
from langdc.log import get_logger
from langdc.pipeline import VideoLM
from langdc.timing import StageTimer, stage
from langdc.types import FeatureGrid, Frames

logger = get_logger(__name__)

READERS, AHEAD = 2, 4
"""Threads that decode, and how many videos may be decoded while another is encoded and answered."""


@dataclass(frozen=True, eq=False)
class _EncodedVideo:
    """Encoder outputs of a video and the seconds they took; holds no reference to a model, nor frames."""

    encoder: Mapping[str, FeatureGrid]
    times: Tensor
    seconds: dict[str, float]
    flops: Mapping[str, float] = field(default_factory=dict)
    chosen_for: str | None = None
    frames: None = None

    @property
    def bytes(self) -> int:
        """The memory its grids take."""
        grids = self.encoder.values()
        tensors = [t for grid in grids for t in (grid.values, grid.saliency, *grid.extra) if t is not None]
        return sum(tensor.nbytes for tensor in tensors)


@dataclass
class FeatureReader:
    """Encoder outputs in a folder, kept as a type; videos that are there are read instead of decoded and encoded."""

    folder: Path
    dtype: FeatureType
    _stores: dict[tuple[str, bool], FeatureStore] = field(default_factory=dict, init=False)

    def find(self, lm: VideoLM, key: str, clip: FrameSpec, saliency: bool) -> _EncodedVideo | None:
        """What is stored of a clip for `lm` (preprocessing `key`), with `saliency` if wanted; None if not there."""
        with StageTimer(lm.device) as timer, stage("read"):
            # outputs stored with saliency serve those who need none, too
            kinds = (saliency,) if saliency or not lm.model.backbone.has_saliency else (False, True)
            found = (self._store(lm, key, kind).find(clip) for kind in kinds)
            encoded, times = next((one for one in found if one is not None), (None, None))
            if encoded is None or times is None:
                return None
            encoded = {name: grid.to(lm.device) for name, grid in encoded.items()}
        return _EncodedVideo(encoded, times, timer.seconds)

    def _store(self, lm: VideoLM, key: str, saliency: bool) -> FeatureStore:
        if (key, saliency) not in self._stores:
            self._stores[key, saliency] = FeatureStore.of(lm.model.backbone, self.folder, self.dtype, saliency)
        return self._stores[key, saliency]


@dataclass(eq=False)
class VideoCache:
    """Encoder outputs of opened videos, by preprocessing and video.

    The seconds of the first opening are kept in `file`, so that every entry is charged the same, also after an
    interruption. `memory`: bytes of encoder outputs to hold; beyond, those unused for longest are dropped and made
    again when asked for, but never one of the last `min_videos`. `named`: remember which outputs are which video's.
    """

    file: LineFile
    memory: float = float("inf")
    min_videos: int = 1
    named: bool = True
    clip: Callable[[Record], Record] = lambda record: record
    """Gives a record the bounds of the part of its file that it is about."""
    stored: FeatureReader | None = None
    """Where to look before a video is decoded and encoded."""
    decoded: int = field(default=0, init=False)
    """How often a video was decoded and encoded."""
    read: int = field(default=0, init=False)
    """How often a video was read from stored outputs instead."""
    names: dict[str, str] = field(default_factory=dict, init=False)
    _held: OrderedDict[str, _EncodedVideo] = field(default_factory=OrderedDict, init=False)
    _opened: set[str] = field(default_factory=set, init=False)
    _unreadable: dict[str, str] = field(default_factory=dict, init=False)
    _decoding: dict[str, Future[tuple[Frames, float]]] = field(default_factory=dict, init=False)
    _next: Iterator[tuple[str, Future[tuple[Frames, float]]]] = field(default=iter(()), init=False)
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS), init=False)

    def decode_ahead(self, lm: VideoLM, key: str, records: Iterable[Record], path_of: Callable[[Record], Path]) -> None:
        """Decode a few of the videos that will be opened in this order, always before they are opened."""
        self._decoding.clear()
        self._next = self._submitted(lm, key, records, path_of)
        self._decoding.update(islice(self._next, AHEAD))

    def _submitted(
        self, lm: VideoLM, key: str, records: Iterable[Record], path_of: Callable[[Record], Path]
    ) -> Iterator[tuple[str, Future[tuple[Frames, float]]]]:
        def decoded(record: Record, path: Path) -> tuple[Frames, float]:
            started, part = time.perf_counter(), self.clip(record)
            return read_spec(lm.frame_spec(path, part.start, part.end, part.fps)), time.perf_counter() - started

        for record in records:
            name = f"{key}/{record.id}"
            if self.stored is None and name not in self._held and name not in self._unreadable:
                with suppress(ValueError):  # a record without a video fails when it is opened
                    yield name, self.readers.submit(decoded, record, path_of(record))

    def open(
        self, lm: VideoLM, key: str, record: Record, path: Any, need: frozenset[str] = frozenset(), question: str = ""
    ) -> Any:
        """The video of a record, open for a model whose preprocessing, and choice of frames, has that `key`.

        `need`: what other entries of this model need of it; `question`: what the model chooses frames for. Raises
        ValueError if it cannot be read.
        """
        name = f"{key}/{record.id}" + f"/{text_hash(question)[:16]}" * lm.chooses
        if name in self._unreadable:
            raise ValueError(self._unreadable[name])
        if name not in self._held or lm.lacks_saliency(self._held[name].encoder):
            self._opened.add(name)
            try:
                video = self._read_or_decoded(lm, key, name, self.clip(record), path, need, question)
            except ValueError as error:
                self._unreadable[name] = str(error)
                raise
            line = {"type": "encoding", "key": name, "video": record.id, "seconds": dict(video.seconds)}
            if not (record.segments or lm.chooses) and video.frames is not None:  # stored outputs come without pixels
                line |= richness(video.frames, lm.model.backbone.frames_per_segment)
            self.file.append([line])
            first = self.file.by_key[name]["seconds"]
            seconds = {**video.seconds, **first}
            self._held[name] = _EncodedVideo(video.encoder, video.times, seconds, video.flops, video.chosen_for)
            if self.named:
                self.names[fingerprint(video.encoder)] = record.id
            held = sum(one.bytes for one in self._held.values())
            while held > self.memory and len(self._held) > self.min_videos:
                held -= self._held.popitem(last=False)[1].bytes
        self._held.move_to_end(name)
        return lm.open(path, same=cast(Any, self._held[name]))

    def richness_of(self, key: str, record: Record) -> dict[str, list[float]]:
        """Motion and edge entropy of each segment of an opened video whose record has none; none of chosen frames."""
        line = self.file.by_key.get(f"{key}/{record.id}", {})
        return {name: line[name] for name in ("motion", "edges") if name in line}

    @staticmethod
    def key_of(lm: VideoLM) -> str:
        """A hash of all that decides a model's encoder outputs for a file."""
        return preprocessing_hash(lm.model.backbone)[:16]

    @property
    def videos(self) -> int:
        """Number of distinct videos opened in this session, per preprocessing."""
        return len(self._opened)

    def _read_or_decoded(
        self, lm: VideoLM, key: str, name: str, part: Record, path: Any, need: frozenset[str], question: str
    ) -> Any:
        if self.stored and not lm.chooses and Path(path).exists():  # a missing file fails alone, when it is opened
            saliency = lm.model.backbone.has_saliency and "saliency" in lm.compressor.needs | need
            found = self.stored.find(lm, key, lm.frame_spec(path, part.start, part.end, part.fps), saliency)
            if found is not None:
                self.read += 1
                return found
        self.decoded += 1
        waiting = self._decoding.pop(name, None)
        if waiting is None:
            return lm.open(path, part.start, part.end, fps=part.fps, need=need, question=question)
        self._decoding.update(islice(self._next, 1))
        return lm.open(path, part.start, part.end, fps=part.fps, need=need, decoded=waiting.result())


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Videos that are not the task's, on which budgets are set: records, files, and their encoder outputs."""

    videos: Sequence[tuple[Record, Path]]
    cache: VideoCache

    def open(self, lm: VideoLM, key: str) -> list[tuple[Any, str]]:
        """The readable ones, open for a model, with one question each in turn; ValueError if none can be read."""
        found = []
        for index, (record, path) in enumerate(self.videos):
            asked = record.questions[index % len(record.questions)].question
            try:
                video = self.cache.open(lm, key, record, path, question=asked)
            except ValueError as error:
                logger.warning("calibration: %s left out: %s", record.id, error)
                continue
            found.append((video, asked))
        if not found:
            raise ValueError("calibration.data: none of its videos can be read; their reasons are in the log.")
        return found
