"""What a phase learns from: a module for the Trainer (batch in, loss out), a data set, and a way to collate it.

What frozen encoders put out is computed before the first step and kept, in memory or on disk; where it is too much for
the memory, each step decodes and encodes its own videos. Letters: B videos, T frames, H W patch grid, C encoder width.
"""

import json
from abc import ABC, abstractmethod
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from langdc.config import PhaseConfig, StageConfig
from langdc.data.records import Record
from langdc.distributed import world_size
from langdc.features import FeatureStore, FrameSpec
from langdc.hashing import text_hash
from langdc.log import get_logger
from langdc.model import VideoModel
from langdc.training.samples import GB, Decoder, Sample, grid_values, read_samples, too_much
from langdc.types import FeatureGrid, Frames, VideoFeatures

logger = get_logger(__name__)


class Objective(Dataset, ABC):
    """A data set with its loss. `module` is what the Trainer trains.

    `online`: nothing of the encoders is kept; batches hold frames, and the module encodes them.
    """

    module: "LossModule"
    samples_per_item = 1
    can_be_online = True

    def __init__(self, model: VideoModel, phase: PhaseConfig, config: StageConfig, features: FeatureStore) -> None:
        self.model = model
        self.phase = phase
        self.seed = config.seed
        self.features = features
        self.epoch = 0
        self.samples = [s for s in read_samples(phase.data, model) if self.wants(s.record)]
        if not self.samples:
            raise ValueError(
                f"Phase {phase.name!r}: no record of {', '.join(map(str, phase.data))} can be used for the "
                f"{phase.objective} objective" + (f" with kinds {phase.kinds}." if phase.kinds else ".")
            )
        self.check_samples()
        self.online = self.can_be_online and self._too_much(config)
        self.decoder = Decoder()
        if not self.online:
            features.fill(self.clips)

    @property
    def clips(self) -> list[FrameSpec]:
        """Of the samples that have one."""
        return [sample.clip for sample in self.samples if sample.clip is not None]

    def _too_much(self, config: StageConfig) -> bool:
        """Whether the encoders' outputs are more than so many GB and there is no folder for them."""
        if self.features.store.folder is not None:
            return False
        values = grid_values(set(self.clips), self.model)
        found = too_much(values, config)
        if found:
            logger.info(
                "Phase %s: what the encoders put out would take up to %.3g GB, more than feature_memory = %g. Each "
                "step decodes and encodes its own videos. To keep it on a disk: features=DIR.",
                self.phase.name,
                values * self.features.dtype.itemsize / GB,
                config.feature_memory,
            )
        return found

    def check_samples(self) -> None:
        """ValueError for records that cannot be learned; asked before the encoders begin."""

    @abstractmethod
    def wants(self, record: Record) -> bool:
        """Whether a record has what this objective learns."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draws are given out."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def data_hash(self) -> str:
        """A hash of the records."""
        text = json.dumps([sample.record.model_dump() for sample in self.samples])
        return text_hash(text)

    def seen(self, samples: list[Sample]) -> dict[str, Any]:
        """What a batch holds of its videos: "grids", or "frames" for the module to encode."""
        if not self.online:
            return {"grids": self.grids(samples)}
        return {"frames": [self.decoder.read(sample.clip) for sample in samples if sample.clip is not None]}

    def grids(self, samples: list[Sample]) -> dict[str, list[Tensor]]:
        """Raw grids per stream as they are kept, one tensor [T,H,W,C] per video; the module casts them."""
        found = [self.features.kept(sample.clip) for sample in samples if sample.clip is not None]
        return {name: [grids[name] for grids in found] for name in (found[0] if found else {})}

    @property
    def looks(self) -> "Looks | None":
        """How the module encodes frames; None where they are encoded already."""
        if not self.online:
            return None
        lengths = {min(clip.segments * clip.frames_per_segment, 2) for clip in self.clips}
        return Looks(self.features, lengths if world_size() > 1 else set(), self.model.backbone.frames_per_segment)

    @abstractmethod
    def collate(self, samples: list[Sample]) -> dict:
        """One batch; "labels" is one padded tensor, from which the Trainer counts targets."""

    def flops_per_batch(self, batch: dict) -> float:
        """Training FLOPs of the batch that was just learned, forward and backward; of encoders, if they ran in it."""
        return self.module.flops


class Looks:
    """Encodes the frames of a batch's videos.

    `lengths`: 1 and 2 if the data set has images, and longer videos. Encoders make a call for each kind; where
    parameters are shared out among ranks, all must make the same calls or they wait for ever, so that kinds which a
    batch lacks are filled in and dropped again. Empty for a single process.
    """

    def __init__(self, features: FeatureStore, lengths: set[int], frames_per_segment: int) -> None:
        self.features = features
        self.blanks = [
            Frames(torch.zeros(count, 3, 32, 32, dtype=torch.uint8), torch.zeros(count))
            for count in ([1] if 1 in lengths else []) + ([frames_per_segment] if 2 in lengths else [])
        ]

    def __call__(self, videos: list[Frames]) -> dict[str, list[Tensor]]:
        """Raw grids per stream, one tensor [T,H,W,C] per video."""
        there = {len(video) > 1 for video in videos}
        filled = [*videos, *(blank for blank in self.blanks if (len(blank) > 1) not in there)]
        found = self.features.look(filled)[: len(videos)] if filled else []
        return {name: [grids[name] for grids in found] for name in (found[0] if found else {})}


def as_features(model: VideoModel, grids: dict[str, list[Tensor]]) -> list[VideoFeatures]:
    """Raw grids of a batch, of any type, as features of its videos, projected as far as the compressor needs."""
    count = len(next(iter(grids.values())))
    weights = chain(model.backbone.projectors.parameters(), model.compressor.parameters())
    dtype = next((weight.dtype for weight in weights), torch.float32)
    grids = {name: [each.to(model.device, dtype) for each in values] for name, values in grids.items()}
    encoded = [{name: FeatureGrid(values[number]) for name, values in grids.items()} for number in range(count)]
    seconds = [torch.arange(len(next(iter(grids.values()))[number])) for number in range(count)]
    return model.backbone.project(encoded, seconds, model.compressor.needs)


def passes(module: nn.Module) -> int:
    """How often a module's products are computed in training: forward, backward to its inputs, and to its weights.

    The last falls away where its weights are frozen; the second is counted always, a little too much for a first layer.
    """
    return 3 if any(parameter.requires_grad for parameter in module.parameters()) else 2


def scaled(total: Tensor, targets: int, num_items_in_batch: Tensor | int | None) -> Tensor:
    """A summed loss as the mean over the targets of the whole (accumulated, all ranks') batch."""
    return total / (num_items_in_batch if num_items_in_batch is not None else max(targets, 1))


class LossModule(nn.Module):
    """What the Trainer trains: a batch in, {"loss"} out. Of the last batch are `flops`, and what `Meter` asks for.

    `looks` encodes the frames of batches that hold no grids.
    """

    def __init__(self, model: VideoModel, looks: Looks | None = None) -> None:
        super().__init__()
        self.model = model
        self.looks = looks
        self.flops = 0.0
        self.counts: dict[str, int] = {}
        self.parts: dict[str, tuple[Tensor, int]] = {}

    def grids(self, grids: dict[str, list[Tensor]] | None, frames: list[Frames] | None) -> dict[str, list[Tensor]]:
        """The batch's grids, given or from its frames."""
        if frames is None:
            return grids or {}
        assert self.looks is not None  # who made the batch made the module
        return self.looks(frames)

    def looking_flops(self, videos: list[VideoFeatures]) -> float:
        """What encoding took, if it was done for this batch."""
        return 0.0 if self.looks is None else sum(self.model.backbone.encoder_flops(video.encoder) for video in videos)
