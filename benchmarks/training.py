"""python benchmarks/training.py [--shape recipe] [--videos 64] [--profile] [--out docs/benchmarks.md]

Stages 2 and 3 of the sample: samples a second, the share of time spent waiting for data, and memory, from pixels and
from stored features, against a plain loop. The plain loop does per step what the published trainer's code does: it
reads the batch's videos, lets the encoders see one segment of all of them at a time, runs the captioner on each such
batch, runs the encoders a second time for the pooled tokens, pads soft tokens to the longest caption, computes logits
everywhere, and overlaps nothing. Stage 2 has no use for pooled tokens, and its trainer is not published, so there the
loop also runs with one look. Model, weights, batches, optimizer and process are the same. All figures are of one pass
over the videos, as the published recipe has it; what ours computes before the first step is in them,
what the Trainer needs to start is not.

Two shapes: the sample's model, whose encoders are tiny beside its captioner; and the recipe's (configs/langdc_3b) with
a quarter of every width, a twelfth of every depth and as few words, in which parts have about the shares of the work
that they have at full size. Random weights, for this is about time.
"""

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from langdc.training.answers import AnswerObjective
from langdc.training.objectives import Objective, as_features
from langdc.training.phases import run_phase
from langdc.training.samples import Sample, settle
from langdc.training.stages import OBJECTIVES

from benchmarks import report
from benchmarks.memory import most_live_bytes
from langdc import checkpoint, devices, distributed
from langdc import config as settings
from langdc.adapters import attach_lora
from langdc.backbones.chat import IGNORED
from langdc.backbones.inputs import pad
from langdc.config import ModelConfig, PhaseConfig, Settings, StageConfig
from langdc.devices import synchronize
from langdc.encoders.internvideo2 import InternVideo2Config
from langdc.features import FeatureStore
from langdc.model import VideoModel
from langdc.sample.dataset import make_dataset
from langdc.train.progress import read_log
from langdc.train.trainable import unfreeze
from langdc.types import Frames, VideoTokens

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("stage", "how", "samples/s", "faster", "before steps", "data wait", "step MiB", "stored MiB")
TITLES = {"sample": "Training, the sample's model", "recipe": "Training, the recipe's model made narrow"}
MIB = 2**20
COSTS = 5


class Model(Settings):
    """What configs/langdc_3b/model.yaml holds."""

    model: ModelConfig


@dataclass(frozen=True)
class Case:
    """A stage with the phase that is measured, on one set of videos."""

    name: str
    config: StageConfig
    phase: PhaseConfig


@dataclass(frozen=True)
class Figures:
    """What one way of training came to, over one pass: seconds in all and before the first step.

    `waiting`: the share of the time of the steps.
    """

    seconds: float
    before: float
    waiting: float
    step_bytes: int
    stored_bytes: int = 0


def cases(videos: Path, batch: int, shape: str = "sample") -> list[Case]:
    """The density phase of stage 2, and stage 3 of the dual form, which sees every video in two ways."""
    found = []
    for name, file, phase in (
        ("2, captions", "configs/sample/langdc/stage2.yaml", "density"),
        ("3, replies", "configs/sample/dual/stage3.yaml", "instruct"),
    ):
        config = settings.load(StageConfig, ROOT / file)
        chosen = next(each for each in config.phases if each.name == phase)
        update = {"data": [videos], "steps": None, "epochs": 1, "batch_size": batch, "questions_per_video": 1}
        config = config.model_copy(update={"start": None, "features": None, "log_steps": 1, "save_steps": 10**6})
        if shape == "recipe":
            config = config.model_copy(update={"model": narrow(dual=chosen.objective == "answer")})
        found.append(Case(name, config, chosen.model_copy(update=update)))
    return found


def narrow(dual: bool) -> ModelConfig:
    """The recipe's model with a quarter of every width and a twelfth of every depth; `dual` as its stage 3 has it."""
    tree = settings.load(Model, ROOT / "configs" / "langdc_3b" / "model.yaml").model.model_dump()
    backbone, compressor = tree["backbone"], tree["compressor"]
    video = InternVideo2Config()
    sizes = {"width": video.width, "mlp_width": video.mlp_width, "depth": video.depth}
    parts = [backbone["language_model"], compressor["captioner"], backbone["image_encoder"]["source"]]
    for part in parts:
        part["config"] = {name: _less(name, value) for name, value in part["config"].items()}
    backbone["video_encoder"]["source"]["config"] = {name: _less(name, value) for name, value in sizes.items()}
    backbone["image_encoder"]["source"]["config"]["num_hidden_layers"] += 1  # the last layer is not read
    backbone["video_encoder"]["source"]["config"]["depth"] += 1
    compressor |= {"layer": 2, "segment_marker": True, "base": {"name": "pool", "sides": [6, 4]} if dual else None}
    return settings.check(ModelConfig, tree, "the recipe's model")


def _less(name: str, value: Any) -> Any:
    """A size of the narrow model; as many words as keep the embeddings' share of the parameters."""
    if name in ("hidden_size", "intermediate_size", "width", "mlp_width"):
        return value // 4
    if name == "vocab_size":
        return value // 48
    return value // 12 if name in ("num_hidden_layers", "depth") else value


def build(case: Case) -> VideoModel:
    """The model of a case as it is trained, the same weights every time."""
    torch.manual_seed(0)
    model, _ = checkpoint.start(case.config.model, None)
    if case.phase.lora is not None:
        attach_lora(model.backbone, case.phase.lora)
    unfreeze(model, case.phase.trainable, adapters=case.phase.lora is not None)
    return model.to(devices.device())


def make(model: VideoModel, case: Case, folder: Path | None) -> Objective:
    """What a case learns, with features in a folder or in memory."""
    return OBJECTIVES[case.phase.objective](model, case.phase, case.config, FeatureStore.of(model.backbone, folder))


class Plain:
    """The plain loop over the samples of an objective."""

    def __init__(self, objective: Objective, looks: int) -> None:
        self.looks = looks
        self.phase = objective.phase
        self.model = objective.model
        self.samples = objective.samples
        self.prompt = objective.prompt if isinstance(objective, AnswerObjective) else None
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = trained
        self.optimizer = torch.optim.AdamW(trained, lr=self.phase.learning_rate, weight_decay=0.0)
        self.waiting = 0.0

    def run(self) -> float:
        """One pass; the seconds."""
        self.model.train()
        started = time.perf_counter()
        for first in range(0, len(self.samples), self.phase.batch_size):
            self.step(self.samples[first : first + self.phase.batch_size])
        synchronize()
        return time.perf_counter() - started

    def step(self, samples: Sequence[Sample]) -> None:
        """Learn from a batch."""
        self.loss(samples).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.phase.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, samples: Sequence[Sample]) -> Tensor:
        """Of a batch, from its files on."""
        before = time.perf_counter()
        videos = [sample.clip.read() for sample in samples if sample.clip is not None]
        self.waiting += time.perf_counter() - before
        return self.answer_loss(samples, videos) if self.prompt is not None else self.caption_loss(samples, videos)

    def segments(self, samples: Sequence[Sample], videos: list[Frames]) -> Iterator[Any]:
        """The captioner's reading of the first segment of all videos, then of the second, and so on."""
        captioner = self.model.captioner
        for number in range(len(samples[0].record.segments)):
            size = captioner.frames_per_segment
            parts = [Frames(v.pixels[number * size :][:size], v.seconds[number * size :][:size]) for v in videos]
            features = as_features(self.model, self.seen(parts))
            captions = [[captioner.captioner.encode(s.record.segments[number].caption)] for s in samples]
            yield captioner.supervised(features, captions)

    def seen(self, videos: list[Frames]) -> dict[str, list[Tensor]]:
        """What the encoders see of all videos at once, by stream."""
        found = self.model.backbone.encode(videos)
        return {name: [grids[name].values for grids in found] for name in found[0]}

    def caption_loss(self, samples: Sequence[Sample], videos: list[Frames]) -> Tensor:
        """Of the captions of all segments."""
        parts = list(self.segments(samples, videos))
        if self.looks > 1:
            self.seen(videos)
        return sum((part.loss for part in parts), torch.zeros(())) / sum(part.targets for part in parts)

    def answer_loss(self, samples: Sequence[Sample], videos: list[Frames]) -> Tensor:
        """Of the replies, given soft tokens that are padded to the longest caption of the batch."""
        with torch.no_grad():
            parts = list(self.segments(samples, videos))
        states = [[part.states[number][0] for part in parts] for number in range(len(samples))]
        longest = max(len(state) for of_video in states for state in of_video)
        states = [[F.pad(state, (0, 0, 0, longest - len(state))) for state in of_video] for of_video in states]
        tokens: list[VideoTokens] = self.model.tokens(as_features(self.model, self.seen(videos)), states)
        assert self.prompt is not None
        prompts = [self.prompt(sample) for sample in samples]
        batch = pad(self.model.backbone.splice(prompts, [[each] for each in tokens]))
        found = self.model.backbone.text_model(
            inputs_embeds=batch.embeds, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        )
        assert batch.labels is not None
        logits = self.model.backbone.lm_head(found.last_hidden_state[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)


def plain(case: Case, stored: Path, looks: int = 2) -> tuple[Figures, int]:
    """The plain loop's figures, after one step that is not counted, and the number of samples.

    `looks`: how often the encoders run; `stored`: where the features of all videos are left, for whoever comes next.
    """
    objective = make(build(case), case, stored)
    loop = Plain(objective, looks)
    few = objective.samples[: case.phase.batch_size]
    loop.step(few)
    step_bytes = _step_bytes(lambda: loop.loss(few).backward())
    loop.optimizer.zero_grad()
    loop.waiting = 0.0
    seconds = loop.run()
    return Figures(seconds, 0.0, loop.waiting / seconds, step_bytes), len(objective)


def ours(case: Case, folder: Path | None, directory: Path) -> Figures:
    """Our loop's figures, from pixels or, where `folder` holds features, from these."""
    model = build(case)
    started = time.perf_counter()
    objective = make(model, case, folder)
    before = time.perf_counter() - started
    few = [objective[number] for number in range(case.phase.batch_size)]
    directory.mkdir(parents=True)
    _learn(objective, few)  # as the plain loop's first step, which is not counted either
    outcome = run_phase(
        objective.module,
        objective,
        objective.collate,
        case.phase,
        case.config,
        directory,
        save=lambda outcome: None,
        flops=objective.flops_per_batch,
    )
    waits = [line["data_wait"] for line in read_log(directory / "log.jsonl")]
    step_bytes = _step_bytes(lambda: _learn(objective, few))
    return Figures(before + outcome.seconds, before, fmean(waits), step_bytes, _stored_bytes(objective))


def _learn(objective: Objective, samples: list[Sample]) -> None:
    device = devices.device()
    batch = objective.collate(samples)
    settle(batch)
    batch = {name: _moved(value, device) for name, value in batch.items()}
    objective.module.train()
    objective.module(**batch)["loss"].backward()
    objective.module.zero_grad()


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, device) for each in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _stored_bytes(objective: Objective) -> int:
    """What is kept of the encoders' outputs, in memory or on disk."""
    clips = {sample.clip for sample in objective.samples if sample.clip is not None}
    grids = (objective.features.get(clip, None)[0].values() for clip in clips)
    return sum(2 * grid.values.numel() for of_video in grids for grid in of_video)


def _step_bytes(work: Callable[[], object]) -> int:
    """The most that a step holds besides weights: counted on a CPU, measured on an accelerator."""
    if not devices.has_accelerator():
        return most_live_bytes(work)
    device: Any = torch.get_device_module(devices.device().type)
    device.reset_peak_memory_stats()
    held = device.memory_allocated()
    work()
    return device.max_memory_allocated() - held


def rows(case: Case, folder: Path) -> Iterator[tuple[str, ...]]:
    """The lines of a stage: the plain loop, and ours from pixels, from stored features, and from stored states too."""
    stored = folder / case.name[0] / "features"
    base, count = plain(case, stored)
    found = [("plain loop", base)]
    if case.phase.objective == "caption":
        found.append(("plain loop, one look", plain(case, stored, looks=1)[0]))
    found.append(("ours, from pixels", ours(case, None, folder / case.name[0] / "pixels")))
    shutil.rmtree(stored.with_name("states"), ignore_errors=True)
    found.append(("ours, stored features", ours(case, stored, folder / case.name[0] / "stored")))
    if case.phase.objective == "answer":
        found.append(("ours, stored features and states", ours(case, stored, folder / case.name[0] / "all stored")))
    for how, each in found:
        yield (
            case.name,
            how,
            f"{count / each.seconds:.3g}",
            f"{base.seconds / each.seconds:.2f}x",
            f"{each.before:.2f} s",
            f"{100 * each.waiting:.0f} %",
            f"{each.step_bytes / MIB:.0f}",
            f"{each.stored_bytes / MIB:.0f}" if each.stored_bytes else "-",
        )


def profile(case: Case) -> list[tuple[str, str, str]]:
    """The five biggest costs of our steps from features: operations by the time they took themselves."""
    model = build(case)
    objective = make(model, case, None)
    few = [objective[number] for number in range(case.phase.batch_size)]
    _learn(objective, few)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if devices.device().type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as seen:
        for _ in range(3):
            _learn(objective, few)
    time_of = "self_device_time_total" if len(kinds) > 1 else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, time_of))
    total = sum(getattr(event, time_of) for event in events)
    return [
        (case.name, event.key, f"{100 * getattr(event, time_of) / total:.0f} %") for event in events[:COSTS]
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the tables if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--videos", type=int, default=64, help="how many (default: 64)")
    parser.add_argument("--shape", choices=tuple(TITLES), default="sample", help="of the model")
    parser.add_argument("--batch", type=int, default=8, help="videos in a step (default: 8)")
    parser.add_argument("--profile", action="store_true", help="name the five biggest costs of our steps instead")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    options = parser.parse_args(argv)
    distributed.start()
    logging.getLogger("langdc").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_dataset(folder / "data", {"train": options.videos, "test": 0}, images=0, workers=1)
        found = cases(folder / "data" / "train.jsonl", options.batch, options.shape)
        if options.profile:
            lines: list[Any] = [line for case in found for line in profile(case)]
            title, columns = (
                f"{TITLES[options.shape]}: the biggest costs of a step",
                ("stage", "operation", "share of the time"),
            )
        else:
            lines = report.follow(line for case in found for line in rows(case, folder / "runs"))
            title, columns = TITLES[options.shape], COLUMNS
    head = f"{report.command(__file__, argv)}, {options.videos} videos, {report.machine(devices.device().type)}."
    report.show(columns, lines, head)
    if options.out is not None:
        report.write(options.out, title, head, columns, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
