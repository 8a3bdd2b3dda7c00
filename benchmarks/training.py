"""python benchmarks/training.py [--shape recipe] [--videos 64] [--profile] [--micro 2 8] [--out docs/benchmarks.md]

Stages 2 and 3 of the sample: samples a second, the share of time spent waiting for data, and memory, from pixels and
from stored features, against a plain loop. The plain loop does per step what the published trainer's code does: it
reads the batch's videos, encodes one segment of all of them at a time, runs the captioner on each such batch, runs the
encoders a second time for the pooled tokens, pads soft tokens to the longest caption, computes logits at all positions,
and overlaps nothing. Stage 2 does not need pooled tokens, and its trainer is not published, so there the loop also runs
with the encoders once. Model, weights, batch size, optimizer and process are the same. All figures are of one pass over
the videos, as in the published recipe; what ours computes before the first step is included, what the Trainer needs to
start is not.

Three shapes: the sample's model, whose encoders are tiny beside its captioner; the recipe's (configs/langdc_3b) with a
quarter of every width, a twelfth of every depth and a 48th of the vocabulary, in which the parts have about the shares
of the operations that they have at full size; and, for an accelerator, the recipe's at full size in bfloat16. Weights
are random, since only time and memory are measured.

--micro measures forward and backward of ours alone, from pixels, at each of the given sizes of a micro-batch: the share
of the device's peak (MFU), memory, and the five operations that take most of the time.
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

from benchmarks import report
from benchmarks.memory import most_live_bytes
from langdc import config as settings
from langdc import devices, distributed, jsonl
from langdc.backbones.chat import IGNORED, conversation
from langdc.config import ModelConfig, RunConfig
from langdc.encoders.internvideo2 import InternVideo2Config
from langdc.features import FeatureStore, read_spec
from langdc.interfaces import Objective
from langdc.model import VideoModel
from langdc.sample.dataset import make_dataset
from langdc.train.arguments import training_arguments
from langdc.train.batches import TrainingData
from langdc.train.learner import Learner
from langdc.train.meter import Meter
from langdc.train.objectives import objectives
from langdc.train.progress import JsonLog
from langdc.train.samples import Sample
from langdc.train.setup import RunModel
from langdc.train.trainer import RunTrainer
from langdc.types import Context, Frames, Prompt, VideoBatch, VideoFeatures

MICRO_COLUMNS = ("stage", "micro-batch", "samples/s", "MFU", "peak MiB", "biggest costs")
ROUNDS = 3
COLUMNS = ("stage", "how", "samples/s", "faster", "before steps", "data wait", "step MiB", "stored MiB")
TITLES = {
    "sample": "Training, the sample's model",
    "recipe": "Training, the recipe's model made narrow",
    "full": "Training, the recipe's model",
}
CASES = {"2, captions": "sample/langdc/stage2_density", "3, replies": "sample/dual"}
NARROWER = {
    "hidden_size": 4, "intermediate_size": 4, "width": 4, "mlp_width": 4, "num_hidden_layers": 12, "depth": 12,
    "vocab_size": 48,  # such that embeddings keep their share of the parameters
}  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """Of one pass: seconds in all and before the first step, share of waiting, most bytes a step holds but weights."""

    seconds: float
    before: float
    waiting: float
    step_bytes: int
    stored_bytes: int = 0


def cases(videos: Path, batch: int, shape: str = "sample") -> list[RunConfig]:
    """The density run of stage 2, and stage 3 of the dual form, which has both captions and pooled tokens."""
    found = []
    for stage, name in CASES.items():
        config = settings.load(RunConfig, name)
        train = {"data": [videos], "steps": None, "epochs": 1, "batch_size": batch, "questions_per_video": 1}
        update: dict[str, Any] = {"stage": stage, "start": None, "features": None, "log_steps": 1, "save_steps": 10**6}
        if shape != "sample":
            update["model"] = recipe(dual=config.objective.name == "answer", narrow=shape == "recipe")
        if shape == "full":
            update["precision"] = "bfloat16"
        found.append(config.model_copy(update={**update, "train": config.train.model_copy(update=train)}))
    return found


def recipe(dual: bool, narrow: bool = True) -> ModelConfig:
    """The recipe's model, `dual` as its stage 3 has it; `narrow`: with a quarter of every width, a twelfth of every
    depth.
    """
    tree = settings.read_tree("langdc_3b/model")["model"]
    backbone, compressor = tree["backbone"], tree["compressor"]
    backbone["video_encoder"]["source"]["config"] = InternVideo2Config().model_dump(include=set(NARROWER))
    encoders = [backbone[f"{name}_encoder"]["source"] for name in ("image", "video")]
    compressor |= {"segment_marker": True, "base": {"name": "pool", "sides": [6, 4]} if dual else None}
    if narrow:
        for part in (backbone["language_model"], compressor["captioner"], *encoders):
            sizes = part["config"]
            sizes |= {name: sizes[name] // by for name, by in NARROWER.items() if name in sizes}
        encoders[0]["config"]["num_hidden_layers"] += 1  # the last layer is not read
        encoders[1]["config"]["depth"] += 1
        compressor["layer"] = 2
    return settings.check(ModelConfig, tree, "the recipe's model")


def build(config: RunConfig) -> tuple[VideoModel, Objective]:
    """The model of a run as it is trained, with the same weights every time, and what it learns."""
    torch.manual_seed(config.seed)
    objective = objectives.build(config.objective.name, **config.objective.settings)
    return RunModel.of(config, objective, devices.device()).model, objective


def data_of(model: VideoModel, objective: Objective, config: RunConfig, folder: Path | None) -> TrainingData:
    """The data of a run, with features in a folder or in memory."""
    return TrainingData(model, objective, config, FeatureStore.of(model.backbone, folder, config.features_dtype))


class Plain:
    """The plain loop over the samples of a run; `encodes`: how often the encoders run on each video."""

    def __init__(self, data: TrainingData, encodes: int) -> None:
        self.data, self.model, self.train, self.encodes = data, data.model, data.config.train, encodes
        self.compressor: Any = self.model.compressor
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=self.train.learning_rate, weight_decay=0.0, fused=True)
        self.waiting = 0.0  # seconds in which files were read

    def run(self) -> float:
        """One pass over the samples; the seconds."""
        self.model.train()
        samples, size = self.data.samples, self.train.batch_size
        self.optimizer.zero_grad()
        self.waiting, started = 0.0, time.perf_counter()
        for first in range(0, len(samples), size):
            self.step(samples[first : first + size])
        devices.synchronize()
        return time.perf_counter() - started

    def step(self, samples: Sequence[Sample]) -> None:
        self.loss(samples).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.train.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, samples: Sequence[Sample]) -> Tensor:
        """The mean loss of a batch, from its files on."""
        before = time.perf_counter()
        videos = [read_spec(spec) for sample in samples for spec in sample.specs]
        self.waiting += time.perf_counter() - before
        if self.data.objective.reads:
            return self._reply_loss(samples, videos)
        parts = list(self._captioned(samples, videos))
        if self.encodes > 1:
            self._features(videos, "encoder")
        return sum((part.loss for part in parts), torch.zeros(())) / sum(part.targets for part in parts)

    def _features(self, videos: list[Frames], need: str) -> list[VideoFeatures]:
        batch = VideoBatch([], [video.seconds for video in videos], frames=videos)
        return self.model.features(batch, frozenset({need}))

    def _captioned(self, samples: Sequence[Sample], videos: list[Frames]) -> Iterator[Any]:
        """The captioner's output for the first segment of all videos, then for the second, and so on."""
        captioner = self.compressor.captioner
        size = self.compressor.frames_per_segment * self.model.backbone.frames_per_step
        for number in range(len(samples[0].record.segments)):
            part = slice(number * size, (number + 1) * size)
            features = self._features([Frames(v.pixels[part], v.seconds[part]) for v in videos], "encoder")
            captions = [captioner.encode(sample.record.segments[number].caption) for sample in samples]
            yield captioner.supervised(self.compressor.visual(features), captions)

    def _reply_loss(self, samples: Sequence[Sample], videos: list[Frames]) -> Tensor:
        """The loss of the replies, given soft tokens that are padded to the longest caption of the batch."""
        backbone = self.model.backbone
        with torch.no_grad():
            parts = list(self._captioned(samples, videos))
        longest = max(len(state) for part in parts for state in part.states)
        padded = [[F.pad(state, (0, 0, 0, longest - len(state))) for state in part.states] for part in parts]
        states = [list(of_video) for of_video in zip(*padded, strict=True)]
        tokens = self.model.compress(self._features(videos, "projected"), Context(targets={"states": states})).tokens
        batch = VideoBatch([], [], self.prompts(samples), [(number,) for number in range(len(samples))])
        inputs: Any = self.model.inputs(batch, tokens)
        hidden = backbone.text_model(**inputs.arguments, use_cache=False).last_hidden_state
        logits = backbone.lm_head(hidden[:, :-1]).float()
        labels = inputs.labels[:, 1:].flatten().to(logits.device)
        return F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED)

    def prompts(self, samples: Sequence[Sample]) -> list[Prompt]:
        """The question and answer of each sample that ours draws in the first epoch."""
        turns = [conversation(each.prompt(), each.answer) for sample in samples for each in self.data.drawn(sample)]
        return [self.model.backbone.prompt(messages, learn=True) for messages in turns]


def plain(config: RunConfig, folder: Path, encodes: int = 2) -> tuple[Figures, int]:
    """The plain loop's figures, and the number of samples; leaves the features of all videos in `folder` for ours."""
    loop = Plain(data_of(*build(config), config, folder), encodes)
    few = loop.data.samples[: config.train.batch_size]
    loop.step(few)  # not counted
    step_bytes = _step_bytes(lambda: loop.loss(few).backward())
    seconds = loop.run()
    return Figures(seconds, 0.0, loop.waiting / seconds, step_bytes), len(loop.data)


def ours(config: RunConfig, folder: Path | None, directory: Path) -> Figures:
    """Our figures, from pixels or, where `folder` holds features, from these; the Trainer writes to `directory`."""
    model, objective = build(config)
    started = time.perf_counter()
    data = data_of(model, objective, config, folder)
    before = time.perf_counter() - started
    learner = _learner(data)
    _learn(learner, data)  # not counted, as in the plain loop
    directory.mkdir(parents=True)
    log = JsonLog(directory / "log.jsonl", lambda steps: steps * config.train.batch_size)
    arguments = training_arguments(config, directory, "benchmark")
    meter = Meter(learner, config.precision, peak=1e12)  # given, so that no time goes into measuring it
    RunTrainer(learner, data, arguments, meter, [log]).train()
    waiting = fmean(line["data_wait"] for line in jsonl.read(log.path))
    step_bytes = _step_bytes(lambda: _learn(learner, data))
    return Figures(before + log.figures()["seconds"], before, waiting, step_bytes, data.features.store.held_bytes)


def _learner(data: TrainingData) -> Learner:
    return Learner(data.model, data.objective, data.config.loss_weights, data.config.seed).train()


def _learn(learner: Learner, data: TrainingData, batch: dict[str, Any] | None = None) -> None:
    """Forward and backward of a batch, by default of the first samples."""
    batch = data.collate(data.samples[: data.config.train.batch_size]) if batch is None else batch
    with torch.autocast(data.model.device.type, torch.bfloat16, data.config.precision == "bfloat16"):
        loss = learner(**batch)["loss"]
    loss.backward()
    learner.zero_grad()


def _step_bytes(work: Callable[[], object]) -> int:
    """The most that a step holds besides weights: counted on a CPU, measured on an accelerator."""
    if not devices.has_accelerator():
        return most_live_bytes(work)
    device = devices.device()
    devices.reset_peak(device)
    held = torch.get_device_module(device.type).memory_allocated()
    work()
    return (devices.peak_bytes(device) or held) - held


def rows(config: RunConfig, folder: Path) -> Iterator[tuple[str, ...]]:
    """The lines of a stage: the plain loop, and ours from pixels, from stored features, and from stored states too."""
    stored = folder / "features"
    base, count = plain(config, stored)
    found = [("plain loop", base)]
    if config.objective.name == "compress":
        found.append(("plain loop, encoders once", plain(config, stored, encodes=1)[0]))
    found.append(("ours, from pixels", ours(config, None, folder / "pixels")))
    shutil.rmtree(folder / "states", ignore_errors=True)  # which the data of the plain loop computed
    found.append(("ours, stored features", ours(config, stored, folder / "stored")))
    if (folder / "states").is_dir():
        found.append(("ours, stored features and states", ours(config, stored, folder / "all stored")))
    for how, each in found:
        speed = f"{count / each.seconds:.3g}", f"{base.seconds / each.seconds:.2f}x", f"{each.before:.2f} s"
        memory = f"{each.step_bytes / 2**20:.0f}", f"{each.stored_bytes / 2**20:.0f}" if each.stored_bytes else "-"
        yield str(config.stage), how, *speed, f"{100 * each.waiting:.0f} %", *memory


def _costs(work: Callable[[], object]) -> list[tuple[str, str]]:
    """The five operations that take most of the time of some work, with their shares."""
    with torch.profiler.profile() as seen:
        for _ in range(ROUNDS):
            work()
    time_of = "self_device_time_total" if devices.has_accelerator() else "self_cpu_time_total"
    times = sorted(((getattr(event, time_of), event.key) for event in seen.key_averages()), reverse=True)
    percent = sum(taken for taken, _ in times) / 100
    return [(name, f"{taken / percent:.0f} %") for taken, name in times[:5]]


def profile(config: RunConfig) -> list[tuple[str, str, str]]:
    """What costs most in our steps from features."""
    data = data_of(*build(config), config, None)
    learner = _learner(data)
    _learn(learner, data)
    return [(str(config.stage), *cost) for cost in _costs(lambda: _learn(learner, data))]


def micro_batches(config: RunConfig, sizes: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """A line for each size of a micro-batch, from decoded frames on; a size that does not fit says so."""
    data = data_of(*build(config), config.model_copy(update={"feature_memory": 0.0}), None)
    learner = _learner(data)
    meter = Meter(learner, config.precision)
    for size in sizes:
        batch = data.collate([data.samples[number % len(data)] for number in range(size)])
        devices.reset_peak(data.model.device)
        try:
            with meter.pause():
                _learn(learner, data, batch)
                devices.synchronize()
            with meter.waiting(0.0):  # starts the clock
                pass
            for _ in range(ROUNDS):
                _learn(learner, data, batch)
                meter.add()
            devices.synchronize()
        except torch.OutOfMemoryError:
            learner.zero_grad()
            yield str(config.stage), str(size), "-", "-", "-", "does not fit"
            continue
        found = meter.figures(ROUNDS * learner.flops)
        costs = "; ".join(f"{name[:40]} {share}" for name, share in _costs(lambda: _learn(learner, data, batch)))  # noqa: B023
        speed = f"{found['samples_per_second']:.3g}", f"{100 * found['mfu']:.1f} %" if "mfu" in found else "-"
        yield str(config.stage), str(size), *speed, f"{found['peak_bytes'] / 2**20:.0f}", costs


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the tables if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--videos", type=int, default=64, help="how many (default: 64)")
    parser.add_argument("--shape", choices=tuple(TITLES), default="sample", help="of the model")
    parser.add_argument("--batch", type=int, default=8, help="videos in a step (default: 8)")
    parser.add_argument("--profile", action="store_true", help="name the five biggest costs of our steps instead")
    parser.add_argument("--micro", type=int, nargs="+", metavar="SIZE", help="measure these micro-batches instead")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    options = parser.parse_args(argv)
    distributed.start()
    logging.getLogger("langdc").setLevel(logging.WARNING)
    title, columns = TITLES[options.shape], COLUMNS
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_dataset(folder / "data", {"train": options.videos, "test": 0}, images=0, workers=1)
        found = cases(folder / "data" / "train.jsonl", options.batch, options.shape)
        if options.micro:
            columns = MICRO_COLUMNS
            lines: Any = report.follow(line for config in found for line in micro_batches(config, options.micro))
        elif options.profile:
            title, columns = f"{title}: the biggest costs of a step", ("stage", "operation", "share of the time")
            lines = [line for config in found for line in profile(config)]
        else:
            lines = report.follow(line for c in found for line in rows(c, folder / c.objective.name))
    head = f"{report.command(__file__, argv)}, {options.videos} videos, {report.machine(devices.device().type)}."
    report.show(columns, lines, head)
    if options.out is not None:
        report.write(options.out, title, head, columns, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
