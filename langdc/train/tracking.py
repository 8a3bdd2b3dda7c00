"""What trackers get besides losses: texts that the compressor writes about held-out videos while it is trained."""

import copy
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations.integration_utils import TensorBoardCallback

from langdc import jsonl
from langdc.config import RunConfig, WatchConfig
from langdc.data.records import Record, check_media, read_records
from langdc.density import densities, density_correlation
from langdc.distributed import is_main_process
from langdc.features import FeatureStore
from langdc.interfaces import TokenCompressor
from langdc.model import VideoModel
from langdc.train.arguments import zero_stage
from langdc.train.meter import Meter
from langdc.types import Context, FrameSpec, VideoBatch


class CaptionEval(TrainerCallback):
    """Every `config.every` steps the compressor writes about fixed videos; a line is appended to a file of JSON lines.

    {"step", "density_correlation", "soft_tokens_per_segment", "captions": [{"id", "written", "target"}]}; Spearman's
    correlation of the density of segments with the number of tokens written. `partitioned`, as under ZeRO-3: a copy of
    the compressor writes, kept on the CPU in between, since each token would gather all parameters. ValueError if the
    compressor writes no text, or no held-out record has captions.
    """

    def __init__(
        self,
        config: WatchConfig,
        path: Path,
        model: VideoModel,
        features: FeatureStore,
        meter: Meter,
        partitioned: bool,
        allow_outside: bool = False,
    ) -> None:
        if type(model.compressor).text is TokenCompressor.text:
            raise ValueError(f"watch: the compressor {model.config.compressor.name!r} writes no text.")
        self.config, self.path, self.model, self.features, self.meter = config, path, model, features, meter
        self.copy = copy.deepcopy(model.compressor).to("cpu").eval() if partitioned else None
        self.records: list[Record] = []
        self.specs: list[FrameSpec] = []
        for record in check_media(config.data, read_records(config.data), allow_outside):
            media = record.media_path(config.data.parent)
            if media is not None and record.segments and len(self.records) < max(config.captions, config.density):
                self.records.append(record)
                self.specs.append(model.backbone.frame_spec(media, record.start, record.end, record.fps))
        if not self.records:
            raise ValueError(f"watch.data: {config.data} has no record with a video or image and captions of segments.")
        with self._autocast():
            features.fill(self.specs)

    @classmethod
    def of(
        cls, config: RunConfig, directory: Path, model: VideoModel, features: FeatureStore, meter: Meter
    ) -> list[Self]:
        """What the setting `watch` asks for, if the compressor is trained."""
        if config.watch is None or not any(parameter.requires_grad for parameter in model.compressor.parameters()):
            return []
        path, allow_outside = directory / "captions.jsonl", config.train.allow_outside
        return [cls(config.watch, path, model, features, meter, zero_stage(config) == 3, allow_outside)]

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Drop lines of steps that are made again."""
        if is_main_process():
            jsonl.write_lines(self.path, [line for line in jsonl.read(self.path) if line["step"] <= state.global_step])

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Write about the videos, if it is time."""
        if state.global_step % self.config.every == 0 or state.global_step >= state.max_steps:
            with self.meter.pause():
                self._evaluate(state.global_step)

    def _evaluate(self, step: int) -> None:
        written = self._written()
        mean = fmean(len(ids) for per_video in written for ids in per_video)
        correlation = self._correlation(written)
        text = self.model.compressor.text
        shown = []
        for record, per_video in zip(self.records, written[: self.config.captions], strict=False):
            target = [segment.caption for segment in record.segments]
            shown.append({"id": record.id, "written": [text(ids) for ids in per_video], "target": target})
        figures = {"density_correlation": correlation, "soft_tokens_per_segment": mean}
        if is_main_process():
            jsonl.append(self.path, {"step": step, **figures, "captions": shown})
        self.meter.held_out = {"held_out_soft_tokens": mean}
        self.meter.held_out |= {} if correlation is None else {"density_correlation": correlation}
        self.meter.held_out |= {f"caption/{each['id']}": " | ".join(each["written"]) for each in shown}

    def _correlation(self, written: Sequence[Sequence[Tensor]]) -> float | None:
        """Of the first `density` videos; None where it is not defined."""
        known = [
            (density, len(ids))
            for record, per_video in zip(self.records[: self.config.density], written, strict=False)
            for density, ids in zip(densities(record.segments), per_video, strict=False)
        ]
        found = density_correlation(*map(list, zip(*known, strict=True))) if len(known) > 2 else math.nan
        return None if math.isnan(found) else round(found, 4)

    @torch.no_grad()
    def _written(self) -> list[list[Tensor]]:
        """The ids of every segment of every video; a batch at a time, on all ranks alike."""
        device, training = self.model.device, self.model.training
        self.model.eval()
        writer, size, written = self._writer(device), self.config.batch_size, []
        for first in range(0, len(self.specs), size):
            found = [self.features.get(spec) for spec in self.specs[first : first + size]]
            batch = VideoBatch([grids for grids, _ in found], [seconds for _, seconds in found])
            with self._autocast():
                videos = self.model.features(batch, synced=True)
                written += writer(videos, Context(wanted=frozenset({"states"}), synced=True)).ids
        self.model.train(training)
        if self.copy is not None:
            self.copy.to("cpu")
        return written

    def _autocast(self) -> torch.autocast:
        precision = self.meter.precision
        return torch.autocast(self.model.device.type, getattr(torch, precision), precision != "float32")

    def _writer(self, device: torch.device) -> nn.Module:
        """The compressor, or its copy with the weights that it has now."""
        if self.copy is None:
            return self.model.compressor
        import deepspeed  # it partitioned the parameters, so it is there

        now = list(self.model.compressor.parameters())
        with deepspeed.zero.GatheredParameters(now):
            for own, trained in zip(self.copy.parameters(), now, strict=True):
                own.copy_(trained)
        return self.copy.to(device)


@contextmanager
def tracked(trainer: Trainer, directory: Path) -> Iterator[None]:
    """Let trackers write into the run's directory, and end their run, so that the next one of a chain begins its own.

    They continue their own run where training is resumed.
    """
    os.environ.setdefault("WANDB_PROJECT", "langdc")
    os.environ.setdefault("WANDB_DIR", str(directory))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(directory / "tensorboard")
    try:
        yield
    finally:
        wandb: Any = sys.modules.get("wandb")
        if wandb is not None and getattr(wandb, "run", None) is not None:
            wandb.finish()
