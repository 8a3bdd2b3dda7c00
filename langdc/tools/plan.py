"""Plans of training stages: what a config will take on so many devices, without weights, and what would fit better.

The model is built on the meta device, so a full-size config is planned on a laptop. Hours need a probe, which runs a
few real steps here.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig

from langdc import checkpoint
from langdc.adapters import adapt, attach_lora
from langdc.config import LoraConfig, ModelConfig, PhaseConfig, StageConfig, check
from langdc.data.records import Record, read_records, write_records
from langdc.features import FeatureStore
from langdc.jsonl import write_json
from langdc.model import VideoModel
from langdc.sources import is_packaged, resolve
from langdc.tools.sizes import published
from langdc.train.progress import read_log
from langdc.train.trainable import unfreeze
from langdc.training import planning
from langdc.training.memory import GIB, Choice, Layout, Weights, best, choices, layout_of
from langdc.training.runs import latest, write_json
from langdc.training.samples import Sample, clip_of
from langdc.training.stages import run_stage

SUGGESTED = LoraConfig(rank=128, alpha=256, dropout=0.05)
"""The paper's adapters, tried where nothing else fits."""
PROBE_STEPS = 6
"""Of each phase; the first two are not counted."""
MARGIN = 0.92
"""Share of a device's memory that a plan may fill: the rest is its context and fragmentation."""


@dataclass(frozen=True)
class Planned:
    """The plan of a phase with the layouts that fit, the fastest first, and what is advised if any does."""

    plan: dict[str, Any]
    choices: list[Choice]
    advice: str
    notes: tuple[str, ...] = ()
    """What the plan rests on because something is not here."""


def sized(config: ModelConfig) -> tuple[ModelConfig, tuple[str, ...]]:
    """The same model with architectures in place of checkpoint directories, so that no weights are read; and notes.

    A directory that is not here is taken for the published part of its name, its tokenizer for the sample's.
    """
    backbone, compressor = dict(config.backbone.settings), dict(config.compressor.settings)
    absent: list[str] = []
    if isinstance(backbone.get("language_model"), str):
        backbone["tokenizer"] = _tokenizer(backbone.get("tokenizer") or backbone["language_model"], absent)
        backbone["language_model"] = _architecture(backbone["language_model"])
    backbone.pop("quantize", None)
    for name in ("image_encoder", "video_encoder"):
        member = dict(backbone.get(name) or {})
        if isinstance(member.get("source"), str):
            backbone[name] = {**member, "source": _architecture(member["source"])}
    if isinstance(compressor.get("captioner"), str):
        named = compressor.get("captioner_tokenizer") or compressor["captioner"]
        compressor["captioner_tokenizer"] = _tokenizer(named, absent)
        compressor["captioner"] = _architecture(compressor["captioner"])
    tree = {
        "backbone": {"name": config.backbone.name, **backbone},
        "compressor": {"name": config.compressor.name, **compressor},
    }
    notes = (f"no tokenizer in {', '.join(dict.fromkeys(absent))}: texts are counted with the sample's, roughly",)
    return check(ModelConfig, tree, "the model to plan"), notes if absent else ()


def _is_here(source: str) -> bool:
    return is_packaged(source) or Path(source).is_dir()


def _tokenizer(source: str, absent: list[str]) -> str:
    if _is_here(source):
        return source
    absent.append(source)
    return "sample:language_model"


def _architecture(source: str) -> dict:
    known = published(source)
    if known is not None and not _is_here(source):
        return {"config": known, "init": "random"}
    folder = resolve(source)
    assert isinstance(folder, Path)
    settings = json.loads((folder / "config.json").read_text())
    if "model_type" in settings:  # else an encoder of ours
        found: Any = AutoConfig.from_pretrained(folder)
        settings = getattr(found, "vision_config", found).to_dict()
    return {"config": settings, "init": "random"}


def plan(config: StageConfig, gpus: int = 1, memory: float | None = None, samples: int | None = None) -> list[Planned]:
    """Plan every phase of a stage for so many devices of so many GiB.

    `samples`: how many records a phase has whose files are not here. ValueError for settings that cannot work.
    """
    return [_plan_phase(config, phase, gpus, memory, samples) for phase in config.phases]


def _plan_phase(
    config: StageConfig, phase: PhaseConfig, gpus: int, memory: float | None, number: int | None
) -> Planned:
    sizes, notes = sized(config.model)
    model = _on_meta(sizes, phase)
    quantized = model.backbone.text_model if config.model.backbone.settings.get("quantize") else None
    found = _samples(phase, model)
    weights = Weights.of(model, quantized)
    known = planning.lengths(model, phase, found) if found else planning.assumed_lengths(model, phase)
    described = planning.plan_phase(model, phase, config, found, gpus, number, weights)
    fits: list[Choice] = []
    advice = ""
    if memory is not None and phase.objective != "align":
        base = replace(layout_of(config, phase, gpus), online=described["online"])
        budget = memory * GIB * MARGIN
        fits = choices(model, phase, known.rows, weights, base, budget)
        chosen = best(fits, phase.batch_size)
        advice = _advice(phase, chosen) if chosen else _with_adapters(sizes, phase, base, known, budget)
    seconds = planning.probed(config).get(phase.name)
    if seconds is not None and described["steps"] is not None:
        described["seconds"] = round(seconds * described["steps"], 1)
    return Planned(described, fits, advice, notes)


def _on_meta(sizes: ModelConfig, phase: PhaseConfig) -> VideoModel:
    """The model as the phase trains it, without numbers in it."""
    with torch.device("meta"):
        model = VideoModel(sizes)
        if phase.lora is not None:
            attach_lora(model.backbone, phase.lora)
        if phase.captioner_lora is not None:
            adapt(model.captioner.captioner.language_model.base_model, phase.captioner_lora)
    patterns = [*phase.trainable, *(["compressor.captioner.*.lora_*"] if phase.captioner_lora else [])]
    unfreeze(model, patterns, adapters=phase.lora is not None)
    return model


def _samples(phase: PhaseConfig, model: VideoModel) -> list[Sample]:
    """The records that a phase learns from, whether or not their media are here; none if a file of them is not."""
    if not all(path.is_file() for path in phase.data):
        return []
    records = [(record, path) for path in phase.data for record in read_records(path)]
    chosen = [(record, path) for record, path in records if _wanted(phase, record)]
    return [Sample(record, clip_of(record, path, model), number) for number, (record, path) in enumerate(chosen)]


def _wanted(phase: PhaseConfig, record: Record) -> bool:
    if phase.objective == "answer":
        return any(phase.kinds is None or question.kind in phase.kinds for question in record.questions)
    return bool(record.segments) and (record.video is not None or record.image is not None)


def _advice(phase: PhaseConfig, choice: Choice) -> str:
    layout, name = choice.layout, f"phases.{phase.name}"
    said = [f"{name}.batch_size={choice.micro_batch}", f"{name}.gradient_accumulation={choice.accumulation}"]
    if layout.zero:
        said.append(f"deepspeed=configs/deepspeed/zero{layout.zero}{'_offload' if layout.offload else ''}.json")
    said.append(f"gradient_checkpointing={str(layout.checkpointing).lower()}")
    return f"{layout.name}: {' '.join(said)}"


def _with_adapters(sizes: ModelConfig, phase: PhaseConfig, base: Layout, known: planning.Lengths, budget: float) -> str:
    """What adapters in place of whole weights would change, where no layout fits."""
    of_captioner = phase.objective == "caption"
    name = "captioner_lora" if of_captioner else "lora"
    body = "compressor.captioner." if of_captioner else "backbone.language_model."
    if getattr(phase, name) is not None:
        return "nothing fits, adapters included: take quantize: nf4, larger devices or more of them"
    kept = [pattern for pattern in phase.trainable if not pattern.startswith(body)] or ["compressor.*projector*"]
    adapted = phase.model_copy(update={name: SUGGESTED, "trainable": kept})
    model = _on_meta(sizes, adapted)
    chosen = best(choices(model, adapted, known.rows, Weights.of(model), base, budget), phase.batch_size)
    if chosen is None:
        return "nothing fits, not with adapters either: take larger devices or more of them"
    return f"only with adapters ({name}: rank {SUGGESTED.rank}); {_advice(phase, chosen)}"


def probe(config: StageConfig, steps: int = PROBE_STEPS) -> dict[str, Any]:
    """Run a few real steps of every phase here and measure: seconds per step by phase, and per video for encoding.

    The stage's start, weights and media must be here. Nothing of it stays but `<output>.probe.json` beside the output,
    which plans read; the features that it encodes are its own.
    """
    with tempfile.TemporaryDirectory(prefix="probe") as folder:
        phases = [_shortened(phase, Path(folder), steps) for phase in config.phases]
        update = {
            "phases": phases,
            "start": config.start and (latest(config.start) or config.start),
            "output": Path(folder) / "run",
            "features": None,
            "feature_memory": 0.0 if any(each.plan["online"] for each in plan(config)) else config.feature_memory,
            "log_steps": 1,
            "save_steps": steps + 1,
            "verify_save": False,
            "trackers": [],
            "watch": None,
        }
        short = config.model_copy(update=update)
        encoding = _encoding_seconds(short)
        directory = run_stage(short)
        lines = {phase.name: read_log(directory / "log.jsonl", phase.name) for phase in phases}
    found = {
        "seconds_per_step": {name: _per_step(each) for name, each in lines.items() if len(each) > 2},
        "seconds_per_video_encoded": encoding,
        "steps": steps,
        "device": _device(),
    }
    path = planning.probe_file(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def _shortened(phase: PhaseConfig, folder: Path, steps: int) -> PhaseConfig:
    """A phase of a few steps over so many records that no video comes twice, with paths that hold anywhere."""
    wanted = phase.batch_size * phase.gradient_accumulation * steps
    records = [
        _absolute(record, path)
        for path in phase.data
        for record in read_records(path)
        if _wanted(phase, record)
    ][:wanted]  # fmt: skip
    place = folder / f"{phase.name}.jsonl"
    write_records(place, records)
    return phase.model_copy(update={"data": [place], "steps": steps, "epochs": None})


def _absolute(record: Record, path: Path) -> Record:
    media = record.media_path(path.parent.resolve())
    name = "video" if record.video is not None else "image"
    return record if media is None else record.model_copy(update={name: str(media)})


def _encoding_seconds(config: StageConfig) -> float:
    """Per video: decoding and both encoders, as they run before the first step."""
    model, _ = checkpoint.start(config.model, config.start)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    samples = _samples(config.phases[-1], model)
    clips = [sample.clip for sample in samples if sample.clip is not None][:8]
    store = FeatureStore(model.backbone.encode, "probe", None)
    store.fill(clips[:1])
    started = time.perf_counter()
    store.fill(clips)
    return (time.perf_counter() - started) / max(len(clips) - 1, 1)


def _per_step(lines: Sequence[dict]) -> float:
    ends = [line["seconds"] for line in lines]
    return median(after - before for before, after in pairwise(ends[1:]))


def _device() -> str:
    if torch.accelerator.is_available():
        return str(torch.get_device_module().get_device_name())
    return f"CPU, {torch.get_num_threads()} threads"
