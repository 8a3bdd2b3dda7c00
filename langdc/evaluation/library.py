"""Videos that were opened, decoded and encoded once for all rows with the same encoders and sampling."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from langdc.data.records import Record
from langdc.evaluation import controls
from langdc.evaluation.results import LineFile
from langdc.evaluation.richness import richness
from langdc.features import module_hash
from langdc.log import get_logger
from langdc.types import Answer, FeatureGrid

logger = get_logger(__name__)


class Asked(Protocol):
    """What the loop needs of a model; `langdc.pipeline.VideoLM` is one."""

    model: Any
    compressor: Any
    kv: Any

    def open(
        self,
        path: Any,
        start: float | None = None,
        end: float | None = None,
        same: Any = None,
        fps: float | None = None,
        need: frozenset[str] = frozenset(),
    ) -> Any:
        """Decode and encode a video, or take over what `same` has seen."""
        ...

    def lacks_saliency(self, raw: Mapping[str, FeatureGrid]) -> bool:
        """Whether grids do not say what the encoder attends to, which the compressor needs."""
        ...

    def answer(self, batch: Any, **generation: Any) -> list[Answer]:
        """Answer (video, question) pairs at once."""
        ...


@dataclass(frozen=True, eq=False)
class Seen:
    """What encoders saw of a video, and the seconds it took; no model hangs on it."""

    raw: Mapping[str, FeatureGrid]
    times: Tensor
    seconds: dict[str, float]
    frames: None = None

    @property
    def bytes(self) -> int:
        """The memory its grids take."""
        grids = self.raw.values()
        tensors = [t for grid in grids for t in (grid.values, grid.saliency, *grid.extra) if t is not None]
        return sum(tensor.nbytes for tensor in tensors)


def _as_it_stands(record: Record) -> Record:
    return record


@dataclass(eq=False)
class Library:
    """Videos that were opened, by encoders and video.

    The seconds of the first opening are kept in `file`, so that every row is charged the same, also when the run was
    interrupted. `memory`: bytes of encoder outputs to hold; beyond, those unused for longest are dropped, to be made
    again when asked for, but never one of the last `least` videos. `named`: remember which outputs are which video's.
    """

    file: LineFile
    memory: float = float("inf")
    least: int = 1
    named: bool = True
    clip: Callable[[Record], Record] = _as_it_stands
    """Says which part of its file a record is about."""
    decoded: int = field(default=0, init=False)
    """How often a video was decoded and encoded."""
    names: dict[str, str] = field(default_factory=dict, init=False)
    _seen: OrderedDict[str, Seen] = field(default_factory=OrderedDict, init=False)
    _opened: set[str] = field(default_factory=set, init=False)
    _unreadable: dict[str, str] = field(default_factory=dict, init=False)

    def open(self, lm: Asked, sight: str, record: Record, path: Any, need: frozenset[str] = frozenset()) -> Any:
        """The video of a record, open for a model whose encoders and sampling have the hash `sight`.

        `need`: what other rows of this model need to know of it. Raises ValueError if it cannot be read.
        """
        key = f"{sight}/{record.id}"
        if key in self._unreadable:
            raise ValueError(self._unreadable[key])
        if key not in self._seen or lm.lacks_saliency(self._seen[key].raw):
            self._read(lm, key, record, path, need)
        self._seen.move_to_end(key)
        return lm.open(path, same=self._seen[key])

    def about(self, sight: str, record: Record) -> dict[str, list[float]]:
        """How rich each segment of a video is that was opened, for records that do not say it."""
        line = self.file.by_key[f"{sight}/{record.id}"]
        return {name: line[name] for name in ("motion", "edges") if name in line}

    @property
    def videos(self) -> int:
        """How many different videos were opened in this session, each as often as differently."""
        return len(self._opened)

    def _read(self, lm: Asked, key: str, record: Record, path: Any, need: frozenset[str]) -> None:
        self.decoded += 1
        self._opened.add(key)
        try:
            clip = self.clip(record)
            video = lm.open(path, clip.start, clip.end, fps=clip.fps, need=need)
        except ValueError as error:
            self._unreadable[key] = str(error)
            raise
        line = {"type": "encoding", "key": key, "video": record.id, "seconds": dict(video.seconds)}
        if not record.segments:
            line |= richness(video.frames, lm.model.host.frames_per_segment)
        self.file.append([line])
        first = self.file.by_key[key]["seconds"]
        self._seen[key] = Seen(video.raw, video.times, {**video.seconds, **first})
        if self.named:
            self.names[controls.fingerprint(video.raw)] = record.id
        self._drop()

    def _drop(self) -> None:
        held = sum(seen.bytes for seen in self._seen.values())
        while held > self.memory and len(self._seen) > self.least:
            held -= self._seen.popitem(last=False)[1].bytes


@dataclass(frozen=True, eq=False)
class Shelf:
    """Other videos than the task's, on which budgets are set: records, files, and what was seen of them."""

    videos: Sequence[tuple[Record, Path]]
    library: Library

    def open(self, lm: Asked, sight: str) -> list[tuple[Any, str]]:
        """The readable ones, open for a model, with a question each: the first of the first, the second of the next ...

        Raises ValueError if none can be read.
        """
        found = []
        for number, (record, path) in enumerate(self.videos):
            try:
                video = self.library.open(lm, sight, record, path)
            except ValueError as error:
                logger.warning("calibration: %s left out: %s", record.id, error)
                continue
            found.append((video, record.questions[number % len(record.questions)].question))
        if not found:
            raise ValueError("calibration.data: none of its videos can be read; their reasons are in the log.")
        return found


def sight(lm: Asked) -> str:
    """A hash of all that decides what a model's encoders see of a file."""
    host = lm.model.host
    return hashlib.sha256(f"{module_hash(host.encoders)} {host.sight}".encode()).hexdigest()[:16]
