"""Videos that were opened, decoded and encoded once for all rows with the same encoders and sampling."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from langdc.config import FeatureType
from langdc.data.records import Record
from langdc.evaluation import controls
from langdc.evaluation.results import LineFile
from langdc.evaluation.richness import richness
from langdc.features import FeatureStore, FrameSpec, preprocessing_hash
from langdc.log import get_logger
from langdc.timing import StageTimer, stage
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

    def clip(
        self, path: Any, start: float | None = None, end: float | None = None, fps: float | None = None
    ) -> FrameSpec:
        """The frames that it samples of a file."""
        ...

    def lacks_saliency(self, encoded: Mapping[str, FeatureGrid]) -> bool:
        """Whether grids do not say what the encoder attends to, which the compressor needs."""
        ...

    def answer(self, batch: Any, **generation: Any) -> list[Answer]:
        """Answer (video, question) pairs at once."""
        ...


@dataclass(frozen=True, eq=False)
class Seen:
    """What encoders saw of a video, and the seconds it took; no model hangs on it."""

    encoder: Mapping[str, FeatureGrid]
    times: Tensor
    seconds: dict[str, float]
    frames: None = None

    @property
    def bytes(self) -> int:
        """The memory its grids take."""
        grids = self.encoder.values()
        tensors = [t for grid in grids for t in (grid.values, grid.saliency, *grid.extra) if t is not None]
        return sum(tensor.nbytes for tensor in tensors)


@dataclass
class Stored:
    """Encoder outputs in a folder, kept as a type, of which those that are there are read instead of videos."""

    folder: Path
    dtype: FeatureType
    _stores: dict[tuple[str, bool], FeatureStore] = field(default_factory=dict, init=False)

    def find(self, lm: Asked, preprocessing: str, clip: FrameSpec, salient: bool) -> Seen | None:
        """What the encoders of `lm` saw of a clip, as they gave it; with what they attend to where `salient`."""
        device = next(lm.model.parameters()).device
        with StageTimer(device) as timer, stage("read"):
            # what was stored with it serves those who have no use for it, too
            kinds = (salient,) if salient or not lm.model.backbone.has_saliency else (False, True)
            found = (self._store(lm, preprocessing, kind).find(clip) for kind in kinds)
            encoded, times = next((one for one in found if one is not None), (None, None))
            if encoded is None or times is None:
                return None
            encoded = {name: _moved(grid, device) for name, grid in encoded.items()}
        return Seen(encoded, times, timer.seconds)

    def _store(self, lm: Asked, preprocessing: str, salient: bool) -> FeatureStore:
        if (preprocessing, salient) not in self._stores:
            self._stores[preprocessing, salient] = FeatureStore.of(lm.model.backbone, self.folder, self.dtype, salient)
        return self._stores[preprocessing, salient]


def _moved(grid: FeatureGrid, device: torch.device) -> FeatureGrid:
    saliency = None if grid.saliency is None else grid.saliency.to(device)
    return FeatureGrid(grid.values.to(device), saliency, tuple(extra.to(device) for extra in grid.extra))


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
    stored: Stored | None = None
    """Where to look before a video is decoded and encoded."""
    decoded: int = field(default=0, init=False)
    """How often a video was decoded and encoded."""
    read: int = field(default=0, init=False)
    """How often it was read from what is stored instead."""
    names: dict[str, str] = field(default_factory=dict, init=False)
    _seen: OrderedDict[str, Seen] = field(default_factory=OrderedDict, init=False)
    _opened: set[str] = field(default_factory=set, init=False)
    _unreadable: dict[str, str] = field(default_factory=dict, init=False)

    def open(self, lm: Asked, preprocessing: str, record: Record, path: Any, need: frozenset[str] = frozenset()) -> Any:
        """The video of a record, open for a model whose encoders and sampling have the hash `preprocessing`.

        `need`: what other rows of this model need to know of it. Raises ValueError if it cannot be read.
        """
        key = f"{preprocessing}/{record.id}"
        if key in self._unreadable:
            raise ValueError(self._unreadable[key])
        if key not in self._seen or lm.lacks_saliency(self._seen[key].encoder):
            self._read(lm, key, record, path, need)
        self._seen.move_to_end(key)
        return lm.open(path, same=self._seen[key])

    def about(self, preprocessing: str, record: Record) -> dict[str, list[float]]:
        """How rich each segment of a video is that was opened, for records that do not say it."""
        line = self.file.by_key[f"{preprocessing}/{record.id}"]
        return {name: line[name] for name in ("motion", "edges") if name in line}

    @property
    def videos(self) -> int:
        """How many different videos were opened in this session, each as often as differently."""
        return len(self._opened)

    def _read(self, lm: Asked, key: str, record: Record, path: Any, need: frozenset[str]) -> None:
        self._opened.add(key)
        video = self._stored(lm, key, record, path, need) or self._decoded(lm, key, record, path, need)
        line = {"type": "encoding", "key": key, "video": record.id, "seconds": dict(video.seconds)}
        if not record.segments and video.frames is not None:  # of what is stored there are no pixels to look at
            line |= richness(video.frames, lm.model.backbone.frames_per_segment)
        self.file.append([line])
        first = self.file.by_key[key]["seconds"]
        self._seen[key] = Seen(video.encoder, video.times, {**video.seconds, **first})
        if self.named:
            self.names[controls.fingerprint(video.encoder)] = record.id
        self._drop()

    def _decoded(self, lm: Asked, key: str, record: Record, path: Any, need: frozenset[str]) -> Any:
        self.decoded += 1
        try:
            clip = self.clip(record)
            return lm.open(path, clip.start, clip.end, fps=clip.fps, need=need)
        except ValueError as error:
            self._unreadable[key] = str(error)
            raise

    def _stored(self, lm: Asked, key: str, record: Record, path: Any, need: frozenset[str]) -> Seen | None:
        if self.stored is None or not Path(path).exists():
            return None
        try:
            part = self.clip(record)
            clip = lm.clip(path, part.start, part.end, part.fps)
        except ValueError:  # opening it will tell
            return None
        salient = lm.model.backbone.has_saliency and "saliency" in lm.compressor.needs | need
        found = self.stored.find(lm, key.partition("/")[0], clip, salient)
        self.read += found is not None
        return found

    def _drop(self) -> None:
        held = sum(seen.bytes for seen in self._seen.values())
        while held > self.memory and len(self._seen) > self.least:
            held -= self._seen.popitem(last=False)[1].bytes


@dataclass(frozen=True, eq=False)
class Shelf:
    """Other videos than the task's, on which budgets are set: records, files, and what was seen of them."""

    videos: Sequence[tuple[Record, Path]]
    library: Library

    def open(self, lm: Asked, preprocessing: str) -> list[tuple[Any, str]]:
        """The readable ones, open for a model, with a question each: the first of the first, the second of the next ...

        Raises ValueError if none can be read.
        """
        found = []
        for number, (record, path) in enumerate(self.videos):
            try:
                video = self.library.open(lm, preprocessing, record, path)
            except ValueError as error:
                logger.warning("calibration: %s left out: %s", record.id, error)
                continue
            found.append((video, record.questions[number % len(record.questions)].question))
        if not found:
            raise ValueError("calibration.data: none of its videos can be read; their reasons are in the log.")
        return found


def preprocessing(lm: Asked) -> str:
    """A hash of all that decides what a model's encoders see of a file."""
    return preprocessing_hash(lm.model.backbone)[:16]
