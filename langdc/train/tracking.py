"""What trackers and the log get beside losses: captions of held-out videos, written during training."""

import copy
import json
import math
import os
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from langdc import jsonl
from langdc.config import RunConfig
from langdc.data.records import Record, check_media, read_records
from langdc.density import density_correlation
from langdc.distributed import is_main_process
from langdc.features import FeatureStore
from langdc.interfaces import TokenCompressor
from langdc.model import VideoModel
from langdc.train.meter import Meter
from langdc.types import Context, FrameSpec, VideoBatch

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class CaptionEval(TrainerCallback):
    """Every few steps the compressor describes held-out videos; its captions are appended to a file of JSON lines.

    {"step", "density_correlation", "soft_tokens_per_segment", "captions": [{"id", "written", "target"}]}. The
    correlation is Spearman's, between the density of segments and the number of tokens written. `sharded`: each process
    will hold only a part of every parameter, as under ZeRO-3; captions are then written by a copy, which is on the CPU
    between evaluations, for each token would gather all parameters again. ValueError for a compressor that writes no
    text, and for records without captions.
    """

    def __init__(
        self, config: RunConfig, path: Path, model: VideoModel, features: FeatureStore, meter: Meter, sharded: bool
    ) -> None:
        assert config.watch is not None  # else there is nothing to evaluate
        self.config, self.path, self.model, self.features, self.meter = config.watch, path, model, features, meter
        self.precision = config.precision
        if type(model.compressor).text is TokenCompressor.text:
            raise ValueError(f"watch: {type(model.compressor).__name__} writes no text about a video. Leave watch out.")
        self.samples = self._read()
        features.fill([spec for _, spec in self.samples])
        self.copy = copy.deepcopy(model.compressor).to("cpu").eval() if sharded else None

    def _read(self) -> list[tuple[Record, FrameSpec]]:
        """The first records with a video or image and captions."""
        file, samples = self.config.data, []
        for record in check_media(file, read_records(file))[0]:
            media = record.media_path(file.parent)
            if media is not None and record.segments and len(samples) < max(self.config.captions, self.config.density):
                samples.append((record, self.model.backbone.frame_spec(media, record.start, record.end, record.fps)))
        if not samples:
            raise ValueError(f"watch.data: {file} has no record with a video or image and captions of segments.")
        return samples

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Drop lines of steps that are made again."""
        if is_main_process():
            jsonl.write_lines(self.path, [line for line in jsonl.read(self.path) if line["step"] <= state.global_step])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Describe the videos, if it is time."""
        if state.global_step % self.config.every == 0 or state.global_step >= state.max_steps:
            with self.meter.pause():
                self._evaluate(state.global_step)

    def _evaluate(self, step: int) -> None:
        written = self._write()
        lengths = [[len(ids) for ids in per_video] for per_video in written]
        pairs = [
            (segment.known_density, length)
            for (record, _), per_video in zip(self.samples[: self.config.density], lengths, strict=False)
            for segment, length in zip(record.segments, per_video, strict=False)
        ]
        known = [(density, length) for density, length in pairs if density is not None]
        correlation = density_correlation(*map(list, zip(*known, strict=True))) if len(known) > 2 else math.nan
        text = self.model.compressor.text
        shown = [
            {
                "id": record.id,
                "written": [text(ids) for ids in per_video],
                "target": [segment.caption for segment in record.segments],
            }
            for (record, _), per_video in zip(self.samples[: self.config.captions], written, strict=False)
        ]
        line = {
            "step": step,
            "density_correlation": None if math.isnan(correlation) else round(correlation, 4),
            "soft_tokens_per_segment": fmean(length for per_video in lengths for length in per_video),
            "captions": shown,
        }
        if is_main_process():
            jsonl.append(self.path, line)
        figures = {"held_out_soft_tokens": line["soft_tokens_per_segment"]}
        if line["density_correlation"] is not None:
            figures["density_correlation"] = line["density_correlation"]
        self.meter.held_out = {**figures, **{f"caption/{each['id']}": " | ".join(each["written"]) for each in shown}}

    @torch.no_grad()
    def _write(self) -> list[list[Tensor]]:
        """The ids of every segment of every video; a batch at a time, on all ranks alike."""
        device, half, training = self.model.device, HALF.get(self.precision), self.model.training
        self.model.eval()
        compressor = self._gathered(device)
        written: list[list[Tensor]] = []
        for first in range(0, len(self.samples), self.config.batch_size):
            chunk = self.samples[first : first + self.config.batch_size]
            found = [self.features.get(spec, None) for _, spec in chunk]
            batch = VideoBatch([grids for grids, _ in found], [seconds for _, seconds in found])
            with torch.autocast(device.type, half, half is not None):
                result = compressor(self.model.features(batch, synced=True), Context(synced=True))
            assert result.ids is not None  # a compressor with `text` returns ids
            written += result.ids
        self.model.train(training)
        if self.copy is not None:
            self.copy.to("cpu")
        return written

    def _gathered(self, device: torch.device) -> TokenCompressor:
        """The compressor, or its copy with the weights that it has now."""
        if self.copy is None:
            return self.model.compressor
        import deepspeed  # it partitioned the parameters, so it is there

        now = list(self.model.compressor.parameters())
        with deepspeed.zero.GatheredParameters(now):
            for own, trained in zip(self.copy.parameters(), now, strict=True):
                own.copy_(trained)
        return self.copy.to(device)


def caption_eval(
    config: RunConfig, directory: Path, model: VideoModel, features: FeatureStore, meter: Meter
) -> list[CaptionEval]:
    """The evaluation of captions during a run, where `watch` asks for it."""
    if config.watch is None:
        return []
    zero = json.loads(config.deepspeed.read_text()).get("zero_optimization", {}) if config.deepspeed else {}
    return [CaptionEval(config, directory / "captions.jsonl", model, features, meter, zero.get("stage") == 3)]


def close_trackers() -> None:
    """End a tracker's run, so that the next run of this process begins one of its own."""
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
