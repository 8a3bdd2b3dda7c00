"""The records that a run learns from, each with the frames that are read of its media."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from langdc.config import TrainConfig
from langdc.data.records import Record, check_media, read_record
from langdc.interfaces import Objective, TokenCompressor
from langdc.log import get_logger
from langdc.model import VideoModel
from langdc.registry import nearest
from langdc.train.mixing import capped
from langdc.train.quarantine import left_out, read_kept
from langdc.types import FrameSpec

logger = get_logger(__name__)


@dataclass(frozen=True)
class Sample:
    """A record with the frames that are read of its videos and images, and its index in the data set.

    `where`: its file and line; `entry`: the number of its entry in `train.data`. `padding`: it fills up a process's
    share of a step; nothing is learned from it.
    """

    record: Record
    specs: tuple[FrameSpec, ...]
    index: int
    where: str
    entry: int = 0
    padding: bool = False

    def targets(self, compressor: TokenCompressor) -> Mapping[str, Any]:
        """What the compressor learns from each of its videos, by name."""
        try:
            return compressor.targets(self.record)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None


def read_samples(model: VideoModel, objective: Objective, train: TrainConfig, seed: int = 0) -> list[Sample]:
    """The samples of all files that an objective and the compressor can learn from.

    ValueError if there is none, as `read_records` and `check_media`, and for records without targets of the compressor.
    """
    samples: list[Sample] = []
    for number, entry in enumerate(train.sets):
        found = [
            (f, r)
            for f in entry.files
            for r in usable(model, objective, train, check_media(f, read_kept(f, train), train.allow_outside))
        ]
        for file, record in (found[place] for place in capped(len(found), entry.cap, seed, number)):
            samples.append(_sample(model, objective, file, record, len(samples), number))
    if not samples:
        kinds = f" with kinds {train.kinds}.{_near_kinds(train, train.kinds[0])}" if train.kinds else "."
        raise ValueError(f"No record of {', '.join(_paths(train))} can be used for this objective{kinds}")
    learned = {question.kind for sample in samples for question in sample.record.questions}
    for kind in [kind for kind in train.kinds or () if kind not in learned]:
        logger.warning("train.kinds: there is no question of the kind %r.%s", kind, _near_kinds(train, kind))
    return with_targets(model, samples, train, drop=not objective.reads)


def _near_kinds(train: TrainConfig, kind: str) -> str:
    """The kinds that the files have, and which one may be meant."""
    records = [record for file in train.files for record in read_kept(file, train)]
    return nearest(kind, {question.kind for record in records for question in record.questions})


def _paths(train: TrainConfig) -> list[str]:
    return [str(entry.path) for entry in train.sets]


def usable(model: VideoModel, objective: Objective, train: TrainConfig, records: list[Record]) -> list[Record]:
    """The records that an objective can learn from, with questions of the chosen kinds."""
    if train.kinds is not None:
        asked = ([q for q in record.questions if q.kind in train.kinds] for record in records)
        named = zip(records, asked, strict=True)
        records = [r.model_copy(update={"questions": kept, "messages": []}) for r, kept in named]
    guided = "question" in model.compressor.needs
    found = [r for r in objective.samples(records) if not guided or r.questions or r.messages]
    return found if objective.reads or guided else _distinct(found)


def _distinct(records: list[Record]) -> list[Record]:
    """Without records that differ from an earlier one only in what is asked: a clip and its captions count once."""
    said, found = {"video", "image", "start", "end", "fps", "media", "segments"}, dict[str, Record]()
    for record in records:
        found.setdefault(record.model_dump_json(include=said) if record.segments else record.id, record)
    return list(found.values())


def _sample(model: VideoModel, objective: Objective, file: Path, record: Record, index: int, entry: int) -> Sample:
    where = f"{file}: line {record.line} (id {record.id!r})"
    specs = tuple(
        model.backbone.frame_spec(file.parent / str(medium.file), medium.start, medium.end, medium.fps)
        for medium in record.shown
    )
    if "question" in model.compressor.needs and len(record.messages) > 3:
        raise ValueError(
            f"{where} is a conversation of several questions, and {model.config.compressor.name!r} compresses a video "
            "for one. Write them as questions, or take another compressor."
        )
    if objective.reads and not objective.own_replies and not all(q.answered for q in record.questions):
        raise ValueError(
            f"{where} has a question without an answer, which this objective learns. Write one, or let the model "
            "reply: objective={name: distill, replies: model}."
        )
    return Sample(record, specs, index, where, entry)


class StreamedSamples(Sequence[Sample]):
    """The samples of files that are larger than the memory, which holds where each record begins, and nothing else.

    A record is read and checked when it is asked for; ValueError names file and line of one that cannot be learned
    from. Only what `train.quarantine` lists is left out.
    """

    def __init__(self, model: VideoModel, objective: Objective, train: TrainConfig, seed: int) -> None:
        self.model, self.objective, self.train, self.files = model, objective, train, train.files
        self._seen = [_seen(file) for file in self.files]
        self.sizes: list[int] = []
        """How many there are of each entry of `train.data`."""
        rows, first = [], 0
        for number, entry in enumerate(train.sets):
            lines = [_lines(file, place, train) for place, file in enumerate(entry.files, first)]
            own = np.concatenate([np.empty((0, 3), np.int64), *lines])
            rows.append(own[capped(len(own), entry.cap, seed, number)])
            self.sizes.append(len(rows[-1]))
            first += len(entry.files)
        self.rows = np.concatenate(rows)
        """Number of the file, byte and line [n,3]."""
        if not len(self.rows):
            raise ValueError(f"{', '.join(_paths(train))}: there is no record in it. Give files that hold some.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        number, offset, line = self.rows[index].tolist()
        file = self.files[number]
        if _seen(file) != self._seen[number]:
            raise ValueError(f"{file} was changed while the run reads it. Restore it, and start again.")
        record = read_record(file, offset, line)
        kept = usable(self.model, self.objective, self.train, check_media(file, [record], self.train.allow_outside))
        if not kept:
            raise ValueError(
                f"{file}: line {line} (id {record.id!r}) has nothing to learn for this objective. With train.streaming "
                "no record is left out: take it out of the file, or set train.streaming: false."
            )
        entry = int(np.searchsorted(np.cumsum(self.sizes), index, "right"))
        sample = _sample(self.model, self.objective, file, kept[0], index, entry)
        return with_targets(self.model, [sample], self.train, drop=False)[0]


def _seen(file: Path) -> tuple[int, int] | None:
    """Size and time of a file, which change when it is written again; None if there is no file."""
    return (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None


def _lines(file: Path, number: int, train: TrainConfig) -> np.ndarray:
    """Of each line of a file that is neither empty nor left out: number of the file, first byte, number [n,3]."""
    if not file.is_file():
        raise ValueError(f"There is no record file {file}. Check the path; `langdc data` makes record files.")
    found, offset, without = array("q"), 0, {one["line"] for one in left_out(file, train)}
    with file.open("rb") as lines:
        for line, content in enumerate(lines, 1):
            if content.strip() and line not in without:
                found.extend((number, offset, line))
            offset += len(content)
    return np.frombuffer(found, dtype=np.int64).reshape(-1, 3)


def with_targets(model: VideoModel, samples: list[Sample], train: TrainConfig, drop: bool) -> list[Sample]:
    """The samples, checked for targets of the compressor; with `drop` those without are left out."""
    if train.targets == "none" or type(model.compressor).targets is TokenCompressor.targets:
        return samples
    shown = [sample for sample in samples if sample.specs]
    lacking = {sample.index for sample in shown if not sample.targets(model.compressor)}
    if lacking and len(lacking) < len(shown) and drop:
        logger.info("%d records are left out: they have nothing that the compressor learns from.", len(lacking))
        kept = [sample for sample in samples if sample.index not in lacking]
        samples = [replace(sample, index=index) for index, sample in enumerate(kept)]
    elif lacking and (model.compressor.losses or len(lacking) < len(shown)):
        raise ValueError(
            f"{next(sample.where for sample in shown if sample.index in lacking)} has nothing that the compressor "
            "learns from, such as segments with captions. Write it there, or set train.targets: none, so that the "
            "compressor works as in use."
        )
    _check_segments(model, samples)
    return samples


def _check_segments(model: VideoModel, samples: Sequence[Sample]) -> None:
    """ValueError for a record whose captions are not one for each segment that its video will have."""
    backbone, steps = model.backbone, model.compressor.frames_per_segment
    for sample in samples:
        if sample.specs and "captions" in sample.targets(model.compressor):
            frames = sample.specs[0].segments * sample.specs[0].frames_per_segment
            found, wanted = len(sample.record.segments), -(-frames // (backbone.frames_per_step * steps))
            if found != wanted:
                raise ValueError(
                    f"{sample.where} has {found} segments; its media is cut into {wanted}. Write one for each, with an "
                    "empty caption where there is nothing to say, or change how many frames the backbone reads "
                    "(segments, frames) or the compressor's frames_per_segment."
                )
