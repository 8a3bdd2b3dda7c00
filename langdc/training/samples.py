"""The records a phase learns from, each with the frames that a model sees of its media."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import get_worker_info

from langdc.config import StageConfig
from langdc.data.records import Record, check_media, read_records
from langdc.features import TYPES, FrameSpec
from langdc.model import VideoModel
from langdc.types import Frames

GB = 10**9
MOST_THREADS = 8  # that decode; more of them wait for the same memory


@dataclass(frozen=True)
class Sample:
    """A record with the clip its media is read from (None for text), and its index in the data set."""

    record: Record
    clip: FrameSpec | None
    index: int


def read_samples(files: Sequence[Path], model: VideoModel) -> list[Sample]:
    """The records of all files; ValueError as `read_records`, and for records whose media file is missing."""
    samples: list[Sample] = []
    for file in files:
        for record in check_media(file, read_records(file))[0]:
            samples.append(Sample(record, clip_of(record, file, model), len(samples)))
    return samples


def check_segments(samples: Sequence[Sample], files: Sequence[Path]) -> None:
    """ValueError unless every record of the files has a caption for each segment that its media is cut into."""
    for sample in samples:
        wanted, found = sample.clip.segments if sample.clip is not None else 0, len(sample.record.segments)
        if wanted != found:
            raise ValueError(
                f"{', '.join(map(str, files))}: line {sample.record.line} (id {sample.record.id!r}) has {found} "
                f"segments; its media is cut into {wanted}. Write one for each, with an empty caption where there is "
                "nothing to say, or change the backbone's setting segments."
            )


def clip_of(record: Record, file: Path, model: VideoModel) -> FrameSpec | None:
    """The frames a model samples of a record's media; None for text."""
    media = record.media_path(file.parent)
    if media is None:
        return None
    if record.image is not None:
        return FrameSpec(media, 1, 1)
    backbone = model.backbone
    return FrameSpec(media, backbone.segments, backbone.frames_per_segment, record.start, record.end, fps=record.fps)


def grid_values(clips: Iterable[FrameSpec], model: VideoModel) -> int:
    """How many numbers the encoders put out for clips, at most: a short file has fewer frames than it is asked for."""
    backbone = model.backbone
    each = sum(side**2 * backbone.stream_widths[name] for name, side in backbone.stream_sides.items())
    return each * sum(clip.segments * clip.frames_per_segment for clip in clips)


def too_much(values: int, config: StageConfig) -> bool:
    """Whether so many numbers of encoders are more than a process keeps in memory."""
    return values * TYPES[config.features_dtype].itemsize > config.feature_memory * GB


class Decoder:
    """Decodes clips ahead, in threads; in a data loader's worker process, which is ahead by itself, at once."""

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(MOST_THREADS, max(2, torch.get_num_threads())))

    def read(self, clip: FrameSpec) -> Frames | Future[Frames]:
        """The frames of a clip, or the promise of them; ValueError, then or now, if the file cannot be read."""
        return clip.read() if get_worker_info() is not None else self._threads.submit(clip.read)


def settle(batch: dict) -> None:
    """Wait for the frames that a batch was promised."""
    for number, frames in enumerate(batch.get("frames", ())):
        if isinstance(frames, Future):
            batch["frames"][number] = frames.result()
