"""The records that a run learns from, each with the frames that are read of its media."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langdc.config import TrainConfig
from langdc.data.records import Record, check_media
from langdc.interfaces import Objective, TokenCompressor
from langdc.log import get_logger
from langdc.model import VideoModel
from langdc.train.quarantine import read_kept
from langdc.types import FrameSpec

logger = get_logger(__name__)


@dataclass(frozen=True)
class Sample:
    """A record with the frames that are read of its videos and images, and its index in the data set.

    `where`: its file and line. `padding`: it fills up a process's share of a step; nothing is learned from it.
    """

    record: Record
    specs: tuple[FrameSpec, ...]
    index: int
    where: str
    padding: bool = False

    def targets(self, compressor: TokenCompressor) -> Mapping[str, Any]:
        """What the compressor learns from each of its videos, by name."""
        try:
            return compressor.targets(self.record)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None


def read_samples(model: VideoModel, objective: Objective, train: TrainConfig) -> list[Sample]:
    """The samples of all files that an objective and the compressor can learn from.

    ValueError if there is none, as `read_records` and `check_media`, and for records without targets of the compressor.
    """
    samples: list[Sample] = []
    for file in train.data:
        records = check_media(file, read_kept(file, train))
        if train.kinds is not None:
            asked = ([q for q in record.questions if q.kind in train.kinds] for record in records)
            named = zip(records, asked, strict=True)
            records = [r.model_copy(update={"questions": kept, "messages": []}) for r, kept in named]
        for record in objective.samples(records):
            if "question" in model.compressor.needs and not (record.questions or record.messages):
                continue
            specs = tuple(
                model.backbone.frame_spec(file.parent / str(medium.file), medium.start, medium.end, medium.fps)
                for medium in record.shown
            )
            samples.append(Sample(record, specs, len(samples), f"{file}: line {record.line} (id {record.id!r})"))
            if "question" in model.compressor.needs and len(record.messages) > 3:
                raise ValueError(
                    f"{samples[-1].where} is a conversation of several questions, and {model.config.compressor.name!r} "
                    "compresses a video for one. Write them as questions, or take another compressor."
                )
            if objective.reads and not objective.own_replies and not all(q.answered for q in record.questions):
                raise ValueError(
                    f"{samples[-1].where} has a question without an answer, which this objective learns. Write one, or "
                    "let the model reply: objective={name: distill, replies: model}."
                )
    if not samples:
        kinds = f" with kinds {train.kinds}" if train.kinds else ""
        raise ValueError(f"No record of {', '.join(map(str, train.data))} can be used for this objective{kinds}.")
    if train.targets == "records" and type(model.compressor).targets is not TokenCompressor.targets:
        samples = with_targets(model, samples, drop=not objective.reads)
    return samples


def with_targets(model: VideoModel, samples: list[Sample], drop: bool) -> list[Sample]:
    """The samples, checked for targets of the compressor; with `drop` those without are left out."""
    shown = [sample for sample in samples if sample.specs]
    lacking = {sample.index for sample in shown if not sample.targets(model.compressor)}
    if lacking and len(lacking) < len(shown) and drop:
        logger.info("%d records are left out: they have nothing that the compressor learns from.", len(lacking))
        kept = [sample for sample in samples if sample.index not in lacking]
        samples = [replace(sample, index=index) for index, sample in enumerate(kept)]
    elif lacking and (model.compressor.losses or len(lacking) < len(shown)):
        raise ValueError(
            f"{samples[min(lacking)].where} has nothing that the compressor learns from, such as segments with "
            "captions. Write it there, or set train.targets: none, so that the compressor works as in use."
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
