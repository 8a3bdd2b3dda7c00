"""`langdc plan CONFIG ...`: what training runs take: samples, tokens, steps, operations, memory, hours.

The model is built on the meta device, without weights, and one sample passes through it there, so a full-size config is
planned on a laptop. `--probe` makes a few real steps here instead, and measures.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table
from torch import nn

from langdc import jsonl
from langdc.config import RunConfig, check
from langdc.configfiles import SHIPPED
from langdc.features import FeatureStore
from langdc.flops import language_model_flops
from langdc.log import console, get_logger
from langdc.model import VideoModel
from langdc.tools.options import add_quarantine
from langdc.train import chain, output
from langdc.train.batches import TrainingData
from langdc.train.objectives import objectives
from langdc.train.run import train
from langdc.train.setup import RunModel
from langdc.train.validation import split
from langdc.types import Context, Frames, FrameSpec

logger = get_logger(__name__)

_GIB = 2**30
_NF4_BYTES = 0.516  # per weight: 4 bits, and scales that are quantized in turn (QLoRA, arXiv 2305.14314)
_PROBE_STEPS = 3
_FILLED = 0.92  # fraction of a device's memory that may be used: the rest is its context and fragmentation
_ASSUMED_MFU = 0.4
_NOTHING_FITS = "nothing fits: a smaller train.batch_size, adapters (train.lora), quantize: nf4, or more devices"
_MEDIA_SIZE = (336, 448)  # height and width where a frame's own size is not known
_UNITS = {  # name, size, from which figure on
    "time": (("h", 3600, 7200), ("min", 60, 120), ("s", 1, 0)),
    "operations": (("EFLOP", 1e18, 1e18), ("PFLOP", 1e15, 1e15), ("TFLOP", 1e12, 0)),
}
_TOKENIZERS = {"language_model": "tokenizer", "captioner": "captioner_tokenizer"}


@dataclass(frozen=True)
class _Layout:
    """How a run is divided among devices. `zero`: the ZeRO stage, 0 without DeepSpeed."""

    zero: int = 0
    offload: bool = False
    checkpointing: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        zero = f"ZeRO-{self.zero}" if self.zero else "no ZeRO"
        return zero + ", offload" * self.offload + ", gradient checkpointing" * self.checkpointing

    @property
    def settings(self) -> str:
        """As overrides."""
        file = f"deepspeed/zero{self.zero}{'_offload' * self.offload}.json" if self.zero else "null"
        return f"deepspeed={file} gradient_checkpointing={str(self.checkpointing).lower()}"


class _SizesOnly(TrainingData):
    """The data of a run whose media are not read: each video is black frames of the number that would be read."""

    def _too_much(self) -> bool:
        return True

    def _decoded(self, specs: Sequence[FrameSpec]) -> list[Frames]:
        found = []
        for spec in specs:
            count, (height, width) = spec.segments * spec.frames_per_segment, spec.size or _MEDIA_SIZE
            found.append(Frames(torch.zeros(count, 3, height, width, dtype=torch.uint8), torch.arange(count).double()))
        return found


def _plan(config: RunConfig, gpus: int = 1) -> dict[str, Any]:
    """What a run takes on so many devices; "tokens" and "flops" are None where a sample cannot pass without numbers.

    {"samples", "steps", "tokens" (of the mean sample), "flops" (of the run), "parameters", "trained", "memory": bytes
    per device by layout}. ValueError for settings and records that cannot work.
    """
    config = _sized(config)
    objective = objectives.build(config.objective.name, **config.objective.settings)
    with torch.device("meta"):
        run = RunModel.of(config.model_copy(update={"start": None}), objective)
    total, trained = _numbers(run.model)
    found: dict[str, Any] = {"parameters": total, "trained": trained, "samples": None}
    found |= {"steps": config.train.steps, "tokens": None, "flops": None}
    found["why"] = "weights are not loaded; use --probe"
    missing = [str(path) for path in config.train.files if not path.is_file()]
    if missing:
        found["why"] = f"there is no {', '.join(missing)}"
    else:
        store, (samples, _) = FeatureStore(run.model.backbone.encode, "plan"), split(run.model, objective, config)
        data = _SizesOnly(run.model, objective, config, store, samples)
        step = config.train.batch_size * config.train.gradient_accumulation * gpus
        found["samples"] = data.epoch_length
        found["steps"] = config.train.steps or math.ceil(
            math.ceil(data.epoch_length / step) * (config.train.epochs or 1)
        )
        tokens, flops = _passed(run.model, data, objective.reads)
        found |= {"tokens": tokens, "flops": flops and flops * step * found["steps"]}
    # what may be tried, the fastest first
    stages = [(0, False), (2, False), (3, False), (3, True)] if gpus > 1 else [(0, False), (3, True)]
    layouts = [_Layout(zero, offload, saved) for zero, offload in stages for saved in (False, True)]
    tokens = found["tokens"] or 1024
    found["memory"] = {layout: _bytes(run.model, config, tokens, layout, gpus) for layout in layouts}
    return found


def _numbers(model: nn.Module) -> tuple[int, int]:
    """How many parameters a model has, and how many of them are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _passed(model: VideoModel, data: TrainingData, reads: bool) -> tuple[float | None, float | None]:
    """Mean tokens that the language model reads of a sample, and operations; None where it takes numbers."""
    tokens, config = [], model.backbone.language_model.config.get_text_config()
    for index in range(0, len(data), max(1, len(data) // 4)):
        batch = data.collate([data[index]])["batch"]
        try:
            with torch.device("meta"):
                found = model.compress(model.features(batch), Context(targets=batch.targets)).tokens
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            return None, None
        texts = sum(len(prompt.ids) for prompt in batch.prompts)
        tokens.append(texts + sum(len(found[number]) for shown in batch.shows for number in shown))
    mean = sum(tokens) / len(tokens)
    passes = 3 if any(parameter.requires_grad for parameter in model.backbone.text_model.parameters()) else 2
    return mean, passes * language_model_flops(config, round(mean), predictions=0) if reads else None


def _bytes(model: VideoModel, config: RunConfig, tokens: float, layout: _Layout, gpus: int) -> float:
    """Memory of one device: weights, gradients, AdamW's states, what is kept for the backward pass, and logits."""
    size = 4 if config.precision == "float32" else 2
    total, trained = _numbers(model)
    packed = config.model.backbone.settings.get("quantize") is not None
    layers = [m for m in model.backbone.text_model.modules() if isinstance(m, nn.Linear)] if packed else []
    saved = sum(layer.weight.numel() * (4 - _NF4_BYTES) for layer in layers)
    # without DeepSpeed weights are float32, which autocast rounds; with it they are of the run's type, with a copy
    weights = (total * 4 - saved) if layout.zero == 0 else total * size
    states = trained * (4 if layout.zero == 0 else size) + trained * (8 if layout.zero == 0 or size == 4 else 12)
    if layout.zero >= 2:
        states /= gpus
    if layout.zero == 3:
        weights /= gpus
    if layout.offload:
        states, weights = 0.0, weights * 0.1
    settings: Any = model.backbone.language_model.config.get_text_config()
    rows = config.train.batch_size * tokens * settings.hidden_size * size
    kept = settings.num_hidden_layers * rows * (1 if layout.checkpointing else 16) + 16 * rows
    logits = config.train.batch_size * tokens * 0.2 * settings.vocab_size * (4 + size)
    return weights + states + kept + logits


def _sized(config: RunConfig) -> RunConfig:
    """The run with published sizes in place of folders of weights that are not here, and the sample's tokenizer."""
    known = yaml.safe_load((SHIPPED / "sizes.yaml").read_text())

    def replaced(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        found = {key: replaced(value) for key, value in tree.items()}
        for key, value in tree.items():
            name = Path(value).name.lower() if isinstance(value, str) and not Path(value).exists() else ""
            start = next((start for start in known if name.startswith(start)), None)
            if start is not None:
                found[key] = {"config": known[start], "init": "random"}
                if key in _TOKENIZERS and found.get(_TOKENIZERS[key]) is None:
                    found[_TOKENIZERS[key]] = "sample:language_model"
                    logger.warning("%s is not here: its published size, and the sample's tokenizer, are taken.", value)
        return found

    tree = config.model_dump(mode="json")
    return check(RunConfig, {**tree, "model": replaced(tree["model"])}, "the run to plan")


def _probe(config: RunConfig) -> dict[str, float]:
    """Make a few real steps here: {"seconds", "tokens", "flops" and "bytes"} of a step. Nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="probe") as folder:
        train_config = config.train.model_copy(update={"steps": _PROBE_STEPS, "epochs": None})
        start = config.start and (output.latest(config.start) or config.start)
        changes = {"train": train_config, "output": Path(folder) / "run", "features": None, "log_steps": 1}
        changes |= {"trackers": [], "watch": None, "start": start}
        lines = jsonl.read(train(config.model_copy(update=changes)) / output.LOG)
    return {
        "seconds": (lines[-1]["seconds"] - lines[0]["seconds"]) / (len(lines) - 1),
        "tokens": lines[-1].get("tokens_per_sample", math.nan),
        "flops": lines[-1]["flops"] / len(lines),
        "bytes": max(line["peak_bytes"] for line in lines),
    }


def _readable(name: str, value: float) -> str:
    """A figure in a unit that suits its size."""
    if name in _UNITS:
        unit, size = next((unit, size) for unit, size, least in _UNITS[name] if value >= least)
        return f"{value / size:{'.2g' if value < 10 * size else ',.0f'}} {unit}"
    return f"{value:.2f} GiB" if name == "peak memory" else f"{value:,.0f}"


def _show(link: chain.Link, found: dict[str, Any], memory: float | None) -> None:
    console.print(f"{link.name} -> {link.config.output}", style="bold", markup=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in ("samples", "steps", "tokens", "parameters", "trained", "operations", "time", "peak memory"):
        value = found.get({"operations": "flops", "time": "seconds", "peak memory": "peak_gib"}.get(name, name))
        table.add_row(name, f"not known: {found['why']}" if value is None else _readable(name, value))
    budget = math.inf if memory is None else _FILLED * memory * _GIB
    for layout, size in found["memory"].items():
        fits = "" if memory is None else "  fits" if size <= budget else "  too large"
        table.add_row(f"memory, {layout.name}", f"{size / _GIB:.1f} GiB{fits}")
    console.print(table)
    if memory is not None:
        chosen = next((layout.settings for layout, size in found["memory"].items() if size <= budget), _NOTHING_FITS)
        console.print(f"To fit: {chosen}\n", markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan of each run that is named."""
    parser = argparse.ArgumentParser(prog="langdc plan", description="What training runs take.")
    parser.add_argument("words", nargs="+", metavar="CONFIG | key=value", help="as for langdc train")
    add_quarantine(parser)
    parser.add_argument("--gpus", type=int, default=1, help="devices that share the work (default: 1)")
    parser.add_argument("--memory", type=float, metavar="GIB", help="of one device: what fits, and what to change")
    parser.add_argument("--probe", action="store_true", help=f"make {_PROBE_STEPS} real steps here, and measure them")
    options = parser.parse_intermixed_args(argv)
    if options.gpus < 1 or (options.memory is not None and options.memory <= 0):
        raise ValueError(f"--gpus {options.gpus} --memory {options.memory}: give at least 1 device and over 0 GiB.")
    overrides = [*filter(None, [options.quarantine]), *(word for word in options.words if "=" in word)]
    for link in chain.read([word for word in options.words if "=" not in word], overrides):
        found = _plan(link.config, options.gpus)
        if options.probe:
            measured = _probe(link.config)
            found |= {"tokens": measured["tokens"], "flops": measured["flops"] * found["steps"]}
            found |= {"seconds": measured["seconds"] * found["steps"], "peak_gib": measured["bytes"] / _GIB}
        elif found["flops"] and link.config.peak_flops:
            found["seconds"] = found["flops"] / (_ASSUMED_MFU * link.config.peak_flops * options.gpus)
        _show(link, found, options.memory)
    return 0
