"""What trackers are told besides losses: captions of videos kept aside, written while the captioner learns."""

import copy
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from langdc import jsonl
from langdc.compressors.langdc import LangDC
from langdc.config import PhaseConfig, StageConfig, WatchConfig
from langdc.density import densities, density_correlation
from langdc.distributed import is_main_process, world_size
from langdc.features import FeatureStore
from langdc.model import VideoModel
from langdc.training.memory import layout_of
from langdc.training.meter import Meter
from langdc.training.objectives import as_features
from langdc.training.samples import Sample, read_samples

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Watch(TrainerCallback):
    """Every so many steps the captioner describes fixed videos; its captions are appended to a file of JSON lines.

    {"phase", "step", "density_correlation", "soft_tokens_per_segment", "captions": [{"id", "written", "target"}]}.
    The correlation is Spearman's, between the density of segments and the number of tokens written. `model` and
    `features` as an objective has them; `samples`: records with their clips. `cut`: each process will hold only a part
    of every parameter, as under ZeRO-3; captions are then written by a copy, which is on the CPU between two looks, for
    each token would bring all parameters together again.
    """

    def __init__(
        self,
        config: WatchConfig,
        phase: str,
        path: Path,
        model: VideoModel,
        features: FeatureStore,
        samples: Sequence[Sample],
        meter: Meter,
        cut: bool,
    ) -> None:
        self.config = config
        self.phase = phase
        self.path = path
        self.model = model
        self.copy = copy.deepcopy(model.captioner).to("cpu").eval() if cut else None
        self.features = features
        self.meter = meter
        wanted = max(config.captions, config.density)
        self.clips = {sample.index: sample.clip for sample in samples if sample.clip is not None}
        self.samples = [s for s in samples if s.index in self.clips and s.record.segments][:wanted]
        if not self.samples:
            raise ValueError(f"watch.data: {config.data} has no record with a video or image and captions of segments.")
        features.fill([self.clips[sample.index] for sample in self.samples])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Drop lines of steps that are made again."""
        if is_main_process():
            kept = [
                line for line in jsonl.read(self.path)
                if line["phase"] != self.phase or line["step"] <= state.global_step
            ]  # fmt: skip
            jsonl.write_lines(self.path, kept)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Describe the videos, if it is time."""
        if state.global_step % self.config.every == 0 or state.global_step >= state.max_steps:
            with self.meter.pause():
                self._look(state.global_step)

    def _look(self, step: int) -> None:
        written = self._write()
        known = [
            (wanted, len(ids))
            for sample, of_video in zip(self.samples[: self.config.density], written, strict=False)
            for wanted, ids in zip(densities(sample.record.segments), of_video, strict=False)
        ]
        related = density_correlation(*map(list, zip(*known, strict=True))) if len(known) > 2 else math.nan
        decode = self.model.captioner.captioner.decode
        shown = [
            {
                "id": sample.record.id,
                "written": [decode(ids) for ids in of_video],
                "target": [segment.caption for segment in sample.record.segments],
            }
            for sample, of_video in zip(self.samples[: self.config.captions], written, strict=False)
        ]
        line = {
            "phase": self.phase,
            "step": step,
            "density_correlation": None if math.isnan(related) else round(related, 4),
            "soft_tokens_per_segment": fmean(len(ids) for of_video in written for ids in of_video),
            "captions": shown,
        }
        if is_main_process():
            with self.path.open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        figures = {"held_out_soft_tokens": line["soft_tokens_per_segment"]}
        if line["density_correlation"] is not None:
            figures["density_correlation"] = line["density_correlation"]
        texts = {f"caption/{each['id']}": " | ".join(each["written"]) for each in shown}
        self.meter.held_out = {**figures, **texts}

    @torch.no_grad()
    def _write(self) -> list[list[Tensor]]:
        """The caption ids of every segment of every video; a batch at a time, on all ranks alike."""
        device, half, training = self.model.device, HALF.get(self.meter.precision), self.model.training
        self.model.eval()
        writer = self._writer(device)
        dtype = next(writer.projectors.parameters()).dtype  # DeepSpeed's type, where it trains
        written: list[list[Tensor]] = []
        for first in range(0, len(self.samples), self.config.batch_size):
            chunk = self.samples[first : first + self.config.batch_size]
            found = [self.features.get(self.clips[sample.index])[0] for sample in chunk]
            grids = {name: [grid[name].values.to(device, dtype) for grid in found] for name in found[0]}
            with torch.autocast(device.type, half, half is not None):
                written += writer.caption(as_features(self.model, grids), synced=True).ids
        self.model.train(training)
        if self.copy is not None:
            self.copy.to("cpu")
        return written

    def _writer(self, device: torch.device) -> LangDC:
        """What writes: the captioner, or its copy with the weights that it has now."""
        if self.copy is None:
            return self.model.captioner
        import deepspeed  # it cut the parameters, so it is there

        now = list(self.model.captioner.parameters())
        with deepspeed.zero.GatheredParameters(now):
            for own, trained in zip(self.copy.parameters(), now, strict=True):
                own.copy_(trained)
        return self.copy.to(device)


def watches(
    config: StageConfig, phase: PhaseConfig, directory: Path, model: VideoModel, features: FeatureStore, meter: Meter
) -> list[Watch]:
    """What a phase is watched by: as the settings say, if the captioner learns in it."""
    if config.watch is None or phase.objective != "caption":
        return []
    samples = read_samples([config.watch.data], model)
    cut = layout_of(config, phase, world_size()).zero == 3
    return [Watch(config.watch, phase.name, directory / "captions.jsonl", model, features, samples, meter, cut)]


def close_trackers() -> None:
    """End a tracker's run, so that the next phase begins one of its own."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()


def open_trackers(trainer: Trainer, directory: Path, name: str) -> None:
    """Let trackers write into the run's directory, and go on with their own run where training goes on."""
    os.environ.setdefault("WANDB_PROJECT", "langdc")
    os.environ.setdefault("WANDB_DIR", str(directory))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(directory / "tensorboard" / name)
