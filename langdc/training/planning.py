"""What a stage will take, said before it runs, and how wrong that was, said after.

Tokens are counted from the records with the model's own tokenizers, memory by closed form (`memory.py`), steps as the
Trainer counts them. `plan.json` in a run's directory keeps the plan; `finished.json` holds it against what was
measured.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from langdc.backbones.chat import IGNORED, conversation
from langdc.compressors.langdc import LangDC
from langdc.config import PhaseConfig, StageConfig
from langdc.devices import has_accelerator
from langdc.distributed import is_main_process, world_size
from langdc.features import FrameSpec
from langdc.jsonl import write_json
from langdc.log import get_logger
from langdc.model import VideoModel
from langdc.training.counts import caption_reads
from langdc.training.memory import Rows, Weights, layout_of, memory
from langdc.training.meter import peak_bytes
from langdc.training.objectives import as_features
from langdc.training.progress import read_log
from langdc.training.samples import Sample, grid_values, too_much

logger = get_logger(__name__)

PLAN = "plan.json"
LOOKED_AT = 64
"""Records whose texts are counted, spread evenly over all of them."""
ASSUMED = {"caption": 59, "question": 40, "answer": 10}
"""Tokens where no record says it. Captions: what the paper's model writes per segment (about 236 of 4 segments)."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sample: of the mean one by part, and of the largest of those looked at."""

    mean: dict[str, float]
    """ "visual", "text", "caption" and "answer" tokens, and "total", all that the trained language model reads."""
    rows: Rows
    assumed: bool = False


def lengths(model: VideoModel, phase: PhaseConfig, samples: Sequence[Sample]) -> Lengths:
    """Count the tokens of samples; `LOOKED_AT` of them at most."""
    chosen = [
        samples[int(n * len(samples) / min(LOOKED_AT, len(samples)))] for n in range(min(LOOKED_AT, len(samples)))
    ]
    count = _caption_lengths if phase.objective in ("caption", "align") else _answer_lengths
    found = [count(model, phase, sample) for sample in chosen]
    names = ("visual", "text", "caption", "answer", "total")
    mean = {name: fmean(each[name] for each in found) for name in names}
    rows = Rows(
        rows=max(each["rows"] for each in found),
        longest=int(max(each["longest"] for each in found)),
        learned=max(each["learned"] for each in found),
        seen=_seen(model, phase, max(_frames(model, sample) for sample in chosen)),
        branched=any(each.get("branches", 0) > 1 for each in found),
    )
    return Lengths(mean, rows)


def assumed_lengths(model: VideoModel, phase: PhaseConfig) -> Lengths:
    """What a sample is taken to be where there are no records to count: a whole video, one question."""
    backbone, caption = model.backbone, ASSUMED["caption"]
    segments, frames = backbone.segments, backbone.segments * _steps(model)
    if phase.objective in ("caption", "align"):
        total = caption_reads(model.captioner, frames, [caption] * segments)
        written = caption * segments
        visual = frames * sum(side**2 for side in model.captioner.pool.values())
        mean = {"visual": visual, "text": total - visual - written, "caption": written, "answer": 0, "total": total}
        rows = Rows(segments, -(-total // segments), segments * (caption + 1), _seen(model, phase, frames))
    else:
        said = caption * segments if isinstance(model.compressor, LangDC) else 0
        visual = _video_tokens(model, frames, segments)
        text = ASSUMED["question"] + ASSUMED["answer"]
        total = visual + said + text
        mean = {"visual": visual, "text": text, "caption": said, "answer": ASSUMED["answer"], "total": total}
        rows = Rows(1, total, ASSUMED["answer"], _seen(model, phase, frames))
    return Lengths({name: float(value) for name, value in mean.items()}, rows, assumed=True)


def _steps(model: VideoModel) -> int:
    """Encoder frames of a segment."""
    return max(1, model.backbone.frames_per_segment // model.backbone.frames_per_step)


def _frames(model: VideoModel, sample: Sample) -> int:
    """Encoder frames of a sample."""
    if sample.clip is None:
        return 0
    return sample.clip.segments * max(1, sample.clip.frames_per_segment // model.backbone.frames_per_step)


def _seen(model: VideoModel, phase: PhaseConfig, frames: int) -> tuple[tuple[int, float], ...]:
    """Raw encoder tokens that a phase projects, by the width of their stream."""
    reads_grids = phase.objective == "caption" or not isinstance(model.compressor, LangDC) or model.compressor.base
    if not reads_grids:
        return ()
    widths, sides = model.backbone.stream_widths, model.backbone.stream_sides
    return tuple((widths[name], float(frames * side**2)) for name, side in sides.items())


def _caption_lengths(model: VideoModel, phase: PhaseConfig, sample: Sample) -> dict[str, float]:
    compressor, frames = model.captioner, _frames(model, sample)
    said = [len(compressor.captioner.encode(segment.caption)) for segment in sample.record.segments]
    visual = frames * sum(side**2 for side in compressor.pool.values())
    total, written = caption_reads(compressor, frames, said), sum(said)
    each = visual // max(len(said), 1) + (total - visual - written) // max(len(said), 1)
    return {
        "visual": visual,
        "text": total - visual - written,
        "caption": written,
        "answer": 0,
        "total": total,
        "rows": len(said),
        "longest": each + max(said, default=0),
        "learned": written + len(said),
    }


def _answer_lengths(model: VideoModel, phase: PhaseConfig, sample: Sample) -> dict[str, float]:
    """The mean over the draws of questions that share the video."""
    backbone, compressor = model.backbone, model.compressor
    asked = [q for q in sample.record.questions if phase.kinds is None or q.kind in phase.kinds]
    drawn = min(phase.questions_per_video, len(asked)) if sample.clip is not None else 1
    prompts = [
        backbone.prompt(conversation(q.question, q.answer, video=sample.clip is not None), learn=True) for q in asked
    ]
    head = prompts[0].slots[0].position if prompts[0].slots else 0
    tails = [len(prompt.ids) - head for prompt in prompts]
    learned = [int((p.labels[1:] != IGNORED).sum()) for p in prompts if p.labels is not None]
    said, visual = [], 0
    if sample.clip is not None:
        if isinstance(compressor, LangDC):
            encode = compressor.captioner.encode
            given = [len(encode(segment.caption)) for segment in sample.record.segments]
            said = given if phase.captions == "file" else [ASSUMED["caption"]] * sample.clip.segments
        visual = _video_tokens(model, _frames(model, sample), sample.clip.segments)
    text, answer = head + drawn * fmean(tails), drawn * fmean(learned)
    rest = visual + sum(said)
    return {
        "visual": visual,
        "text": text,
        "caption": sum(said),
        "answer": answer,
        "total": rest + text,
        "rows": 1,
        "longest": rest + head + sum(sorted(tails)[-drawn:]),
        "learned": sum(sorted(learned)[-drawn:]),
        "branches": drawn,
    }


@torch.no_grad()
def _video_tokens(model: VideoModel, frames: int, segments: int) -> int:
    """Tokens that a compressor makes of a video besides caption tokens, counted on a video of zeros."""
    compressor: Any = model.compressor
    marks = 0
    if isinstance(compressor, LangDC):
        marks = segments if compressor.segment_marker is not None else 0
        compressor = compressor.base
    if compressor is None:
        return marks
    widths, sides = model.backbone.stream_widths, model.backbone.stream_sides
    where = next(model.backbone.parameters())
    grids = {
        name: [torch.zeros(frames, side, side, widths[name], device=where.device, dtype=where.dtype)]
        for name, side in sides.items()
    }
    try:
        (found,) = compressor.batch(as_features(model, grids))
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{type(compressor).__name__} does not tell how many tokens it makes without weights ({error})."
        ) from None
    return marks + len(found)


def steps_of(phase: PhaseConfig, samples: int, processes: int) -> int:
    """Optimizer steps, as the Trainer counts them."""
    if phase.objective == "align":
        return 0
    if phase.steps is not None:
        return phase.steps
    batches = -(-samples // (phase.batch_size * processes))
    return math.ceil((phase.epochs or 1) * -(-batches // phase.gradient_accumulation))


def plan_phase(
    model: VideoModel,
    phase: PhaseConfig,
    config: StageConfig,
    samples: Sequence[Sample],
    gpus: int,
    number: int | None = None,
    weights: Weights | None = None,
) -> dict[str, Any]:
    """The plan of one phase as it goes into plan.json. `model`: as it is trained; `samples`: those it learns from.

    Without samples, `number` says how many there will be, if that is known.
    """
    found = lengths(model, phase, samples) if samples else assumed_lengths(model, phase)
    known = len(samples) or number
    weights = weights or Weights.of(model)
    layout = replace(layout_of(config, phase, gpus), online=is_online(config, model, phase, samples, known))
    steps = steps_of(phase, known or 0, gpus) if known or phase.steps else None
    return {
        "name": phase.name,
        "objective": phase.objective,
        "samples": known,
        "assumed": found.assumed,
        "steps": steps,
        "batch": phase.batch_size * phase.gradient_accumulation * gpus,
        "tokens_per_sample": {name: round(value, 1) for name, value in found.mean.items()},
        "parameters": {"total": weights.total, "trained": weights.trained},
        "layout": layout.name,
        "online": layout.online,
        "memory": {name: round(size) for name, size in memory(model, phase, found.rows, weights, layout).items()},
        "seconds": None,
    }


def is_online(
    config: StageConfig, model: VideoModel, phase: PhaseConfig, samples: Sequence[Sample], number: int | None
) -> bool:
    """Whether each step will encode its own videos, as `Objective` decides it; without samples, of so many videos."""
    if config.features is not None or phase.objective == "align":
        return False
    clips = {sample.clip for sample in samples if sample.clip is not None}
    whole = FrameSpec(Path(), model.backbone.segments, model.backbone.frames_per_segment)
    values = grid_values(clips, model) if samples else (number or 0) * grid_values([whole], model)
    return too_much(values, config)


def note(
    directory: Path, config: StageConfig, phase: PhaseConfig, model: VideoModel, samples: Sequence[Sample]
) -> None:
    """Put the plan of a phase that is about to run into plan.json; its seconds are those that a probe foretold."""
    if not is_main_process():
        return
    path = directory / PLAN
    tree = json.loads(path.read_text()) if path.is_file() else {"phases": {}}
    if phase.name in tree["phases"]:
        return
    plan = plan_phase(model, phase, config, samples, world_size())
    foretold = probed(config).get(phase.name)
    if foretold is not None and plan["steps"]:
        plan["seconds"] = round(foretold * plan["steps"], 1)
    # on a CPU all that is resident counts, so what the process held before goes along
    plan["held_before"] = 0 if has_accelerator() else peak_bytes() - plan["memory"]["weights"]
    tree["phases"][phase.name] = plan
    write_json(path, tree)


def probe_file(config: StageConfig) -> Path:
    """Where `langdc plan --probe` leaves seconds per step, beside the directory that the stage will make."""
    return config.output.with_name(f"{config.output.name}.probe.json")


def probed(config: StageConfig) -> dict[str, float]:
    """Seconds per step by phase that were measured for this stage; empty if none were."""
    path = probe_file(config)
    return json.loads(path.read_text())["seconds_per_step"] if path.is_file() else {}


def review(directory: Path, figures: dict[str, dict]) -> dict[str, dict]:
    """Say what was planned against what was measured, and give it by phase.

    {"steps": {"predicted", "measured", "error"}, ...}. `figures`: steps and seconds by phase. An error of 0.1 means
    that the prediction was a tenth too high; None where one of the two is not known.
    """
    path = directory / PLAN
    plans = json.loads(path.read_text())["phases"] if path.is_file() else {}
    found = {name: _against(plans[name], figures[name], directory) for name in figures if name in plans}
    _tell(found)
    return found


def _against(plan: dict, measured: dict, directory: Path) -> dict[str, dict]:
    lines = read_log(directory / "log.jsonl", plan["name"])
    read = [line["tokens_per_sample"] for line in lines if "tokens_per_sample" in line]
    peaks = [line["peak_bytes"] for line in lines if "peak_bytes" in line]
    pairs = {
        "steps": (plan["steps"], measured["steps"]),
        "tokens_per_sample": (plan["tokens_per_sample"]["total"], round(fmean(read), 1) if read else None),
        "peak_bytes": (plan["memory"]["total"] + max(plan.get("held_before", 0), 0), max(peaks, default=None)),
        "seconds": (plan["seconds"], measured["seconds"]),
    }
    return {name: {"predicted": a, "measured": b, "error": _error(a, b)} for name, (a, b) in pairs.items()}


def _error(predicted: float | None, measured: float | None) -> float | None:
    return round(predicted / measured - 1, 4) if predicted is not None and measured else None


def _tell(reviewed: dict[str, dict]) -> None:
    """Say how wrong the plan was, a line per phase."""
    for name, found in reviewed.items():
        said = [
            f"{what.replace('_', ' ')} {pair['error']:+.1%}" if pair["error"] is not None else f"{what} not planned"
            for what, pair in found.items()
        ]
        logger.info("%s, the plan against what was measured: %s.", name, ", ".join(said))
