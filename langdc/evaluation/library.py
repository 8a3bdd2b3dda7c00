"""Videos that were opened, decoded and encoded once for all rows with the same encoders and sampling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from langdc.data.records import Record
from langdc.evaluation import controls
from langdc.evaluation.results import LineFile
from langdc.features import module_hash
from langdc.log import get_logger
from langdc.types import Answer, FeatureGrid

logger = get_logger(__name__)


class Asked(Protocol):
    """What the loop needs of a model; `langdc.pipeline.VideoLM` is one."""

    model: Any
    compressor: Any
    kv: Any

    def open(self, path: Any, start: float | None = None, end: float | None = None, same: Any = None) -> Any:
        """Decode and encode a video, or take over what `same` has seen."""
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


@dataclass(eq=False)
class Library:
    """Videos that were opened, by encoders and video. The seconds of the first opening are kept in `file`, so that
    every row is charged the same, also when the run was interrupted.
    """

    file: LineFile
    seen: dict[str, Seen] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def open(self, lm: Asked, sight: str, record: Record, path: Any) -> Any:
        """The video of a record, open for a model whose encoders and sampling have the hash `sight`."""
        key = f"{sight}/{record.id}"
        if key not in self.seen:
            video = lm.open(path, record.start, record.end)
            line = {"type": "encoding", "key": key, "video": record.id, "seconds": dict(video.seconds)}
            self.file.append([line])
            self.seen[key] = Seen(video.raw, video.times, self.file.by_key[key]["seconds"])
            self.names[controls.fingerprint(video.raw)] = record.id
        return lm.open(path, record.start, record.end, same=self.seen[key])


@dataclass(frozen=True, eq=False)
class Shelf:
    """Other videos than the task's, on which budgets are set: records, files, and what was seen of them."""

    videos: Sequence[tuple[Record, Path]]
    library: Library

    def open(self, lm: Asked) -> list[tuple[Any, str]]:
        """The readable ones, open for a model, with a question each: the first of the first, the second of the next ...

        Raises ValueError if none can be read.
        """
        found, seen = [], sight(lm)
        for number, (record, path) in enumerate(self.videos):
            try:
                video = self.library.open(lm, seen, record, path)
            except ValueError as error:
                logger.warning("calibration: %s left out: %s", record.id, error)
                continue
            found.append((video, record.questions[number % len(record.questions)].question))
        if not found:
            raise ValueError("calibration.data: none of its videos can be read; their reasons are in the log.")
        return found


def sight(lm: Asked) -> str:
    """A hash of all that decides what a model's encoders see of a file, and whether they say what they attend to."""
    host = lm.model.host
    attended = "-saliency" if host.tells_saliency and "saliency" in lm.compressor.needs else ""
    return f"{module_hash(host.encoders)[:16]}-{host.segments}x{host.frames_per_segment}{attended}"
