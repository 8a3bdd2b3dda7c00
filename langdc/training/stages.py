"""The stages: phases one after the other, each from the checkpoint of the one before, into one directory.

`main` is the body that train/stage1.py, stage2.py and stage3.py share.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from langdc import checkpoint, devices, distributed
from langdc import config as settings
from langdc.adapters import adapt, attach_lora, merge
from langdc.config import LoraConfig, PhaseConfig, StageConfig
from langdc.distributed import is_main_process, without_launcher
from langdc.features import FeatureStore
from langdc.hashing import tensors_hash
from langdc.jsonl import write_json
from langdc.language_models import FLASH, fastest_attention, use_liger
from langdc.log import get_logger
from langdc.model import VideoModel
from langdc.store import StoreError
from langdc.training import planning, runs, saving, stopping
from langdc.training.alignment import Alignment
from langdc.training.answers import AnswerObjective
from langdc.training.captions import CaptionObjective
from langdc.training.meter import Meter
from langdc.training.phases import Outcome, run_phase
from langdc.training.runs import FINISHED
from langdc.training.stopping import Stopped
from langdc.training.tracking import watches
from langdc.training.trainable import unfreeze

logger = get_logger(__name__)

OBJECTIVES = {"caption": CaptionObjective, "align": Alignment, "answer": AnswerObjective}
SAMPLE_CONFIG = "configs/sample/langdc/{stage}.yaml"
SAMPLE_DATA = Path("data/sample")


def run_stage(config: StageConfig) -> Path:
    """Train a stage, or the rest of it, and return its directory, which `langdc.checkpoint.load` reads.

    `finished.json` in it: {"steps", "loss", "seconds", "samples", "flops"} summed over the phases (loss: of the last),
    "hash" of the tensors saved, "phases", and "plan", what was planned against what came. Raises ValueError for
    settings or data that cannot work.
    """
    names = [phase.name for phase in config.phases]
    if len(set(names)) < len(names):
        raise ValueError(f"phases: names must differ, for checkpoints are kept under them. Given: {', '.join(names)}.")
    distributed.start(deepspeed=config.deepspeed is not None)
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    directory = runs.claim(config).directory
    saving.begin(config.verify_save)
    features: FeatureStore | None = None
    for number in range(len(config.phases)):
        if not runs.is_finished(_place(config, directory, number)):
            try:
                features = _train(config, directory, number, features)
            except Stopped:
                if not runs.is_finished(directory):
                    raise
    return directory


def _place(config: StageConfig, directory: Path, number: int) -> Path:
    """Where a phase's checkpoint goes: the last one's is the stage's."""
    last = number == len(config.phases) - 1
    return directory if last else directory / "phases" / config.phases[number].name


def _train(config: StageConfig, directory: Path, number: int, features: FeatureStore | None) -> FeatureStore:
    phase, place = config.phases[number], _place(config, directory, number)
    start = _place(config, directory, number - 1) if number else config.start
    set_seed(config.seed)  # what is new gets the same weights in every process and at every new start
    model, carried = checkpoint.start(config.model, start)
    lora, carried = _adapt(model, phase, start, carried)
    writing = _adapt_captioner(model, phase)
    patterns = [*phase.trainable, *(["compressor.captioner.*.lora_*"] if writing else [])]
    trained = unfreeze(model, patterns, adapters=phase.lora is not None)
    _apply(model, phase, config)
    model.to(devices.device())
    if features is None:
        features = FeatureStore.of(model.backbone, config.features, config.features_dtype)
    features.encoders = model.backbone.encode
    objective = OBJECTIVES[phase.objective](model, phase, config, features)
    drawn = {n: p for n, p in saving.drawn_parameters(model).items() if n not in carried}
    proof = saving.Proof(model, config.verify_save)
    count = sum(model.get_parameter(name).numel() for name in trained)
    logger.info("%s, phase %s: %d samples, %d trained parameters.", config.stage, phase.name, len(objective), count)

    def save(outcome: Outcome) -> None:
        kept = _merge_captioner(model, writing, trained) if writing else trained
        tensors = {**checkpoint.own_tensors(model, drawn), **carried, **checkpoint.own_tensors(model, kept)}
        figures = {**outcome.__dict__, "hash": tensors_hash(tensors)}
        info = {"stage": config.stage, "phase": phase.name, "data_sha256": objective.data_hash(), "training": figures}
        checkpoint.save(model, place, tensors=tensors, lora=lora, info=info)
        figures["verified"] = proof.compare(place, tensors)
        write_json(place / FINISHED, _total(config, directory, number, figures))

    if isinstance(objective, Alignment):
        outcome = objective.solve()
        logger.info("%s: solved, %.4f of the words' embeddings left unexplained.", phase.name, outcome.loss)
        distributed.main_process_first(lambda: save(outcome))
        return features
    planning.note(directory, config, phase, model, objective.samples)
    meter = Meter(objective.module, config.precision, config.peak_flops)
    run_phase(
        objective.module,
        objective,
        objective.collate,
        phase,
        config,
        directory,
        save=save,
        before_save=proof.look,
        gather=[*drawn.values(), *(writing.parameters() if writing else ())],
        samples_per_item=objective.samples_per_item,
        flops=objective.flops_per_batch,
        meter=meter,
        callbacks=watches(config, phase, directory, model, features, meter),
    )
    return features


def _total(config: StageConfig, directory: Path, number: int, figures: dict) -> dict:
    """The figures of a phase, or with the last phase those of the stage."""
    if number < len(config.phases) - 1:
        return figures
    earlier = [json.loads((_place(config, directory, n) / FINISHED).read_text()) for n in range(number)]
    phases = dict(zip([phase.name for phase in config.phases], [*earlier, figures], strict=True))
    summed = {key: sum(part[key] for part in phases.values()) for key in ("steps", "seconds", "samples", "flops")}
    reviewed = planning.review(directory, phases)
    return {**summed, "loss": figures["loss"], "hash": figures["hash"], "phases": phases, "plan": reviewed}


def _adapt(
    model: VideoModel, phase: PhaseConfig, start: Path | None, carried: dict[str, Tensor]
) -> tuple[LoraConfig | None, dict[str, Tensor]]:
    """Attach the phase's adapters. Returns those the model now has, and the earlier tensors under their new names."""
    card = checkpoint.read_card(start)["lora"] if start else None
    earlier = settings.check(LoraConfig, card, "lora") if card else None
    if phase.lora is None or phase.lora == earlier:
        return earlier, carried
    if earlier is not None:
        raise ValueError(
            f"Phase {phase.name!r} asks for LoRA {phase.lora.model_dump()}, but {start} has {earlier.model_dump()}. "
            "Use the same, or export the earlier checkpoint first, which merges its adapters."
        )
    before = dict(model.named_parameters(remove_duplicate=False))
    attach_lora(model.backbone, phase.lora)
    now: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        now.setdefault(id(parameter), name)
    return phase.lora, {now[id(before[name])]: tensor for name, tensor in carried.items()}


def _adapt_captioner(model: VideoModel, phase: PhaseConfig) -> PreTrainedModel | None:
    """Attach the adapters that a phase trains the captioner through; what they sit on, or None if it has none."""
    if phase.captioner_lora is None:
        return None
    text = model.captioner.captioner.language_model.base_model
    assert isinstance(text, PreTrainedModel)
    adapt(text, phase.captioner_lora)
    return text


def _merge_captioner(model: VideoModel, text: PreTrainedModel, trained: set[str]) -> set[str]:
    """Merge the captioner's adapters, so that later stages see a captioner like any other; the names to save."""
    (prefix,) = (name for name, part in model.named_modules() if part is text)
    merged = {f"{prefix}.{name}" for name in merge(text)}
    return {name for name in trained if not (name.startswith(prefix) and ".lora_" in name)} | merged


def _apply(model: VideoModel, phase: PhaseConfig, config: StageConfig) -> None:
    """Set the attention kernel, fused layers and gradient checkpointing of every transformers part."""
    writer = model.captioner.captioner.language_model if phase.objective == "caption" else None
    if config.attention == FLASH and writer is None:
        raise ValueError(
            f"attention: {FLASH} cannot be used in phase {phase.name!r}, whose questions about a video need a mask of "
            "their own. Use auto, which takes it where it can, or sdpa."
        )
    fast, why = fastest_attention(config.precision != "float32")
    for part in model.modules():
        if not isinstance(part, PreTrainedModel):
            continue
        kernel = config.attention
        if kernel == "auto":
            # flash-attn reads padding masks only: not the one of several questions about a video, nor what runs in
            # float32 before training
            of_writer = writer is not None and (part is writer or part is writer.base_model)
            kernel = fast if of_writer else "sdpa"
        if kernel not in (None, part.config._attn_implementation):
            part.set_attn_implementation(kernel)
        if config.gradient_checkpointing and part.supports_gradient_checkpointing:
            part.gradient_checkpointing_enable({"use_reentrant": False})
    if config.attention == "auto":
        reason = why if writer is not None or fast != FLASH else "several questions about a video need their own mask"
        logger.info("attention: %s (%s).", fast if writer is not None else "sdpa", reason)
    for part in (model.backbone.language_model, *([writer] if writer is not None else [])):
        use_liger(part, config.liger)


def main(stage: str, argv: Sequence[str], root: Path) -> tuple[int, str]:
    """Run a stage as a command: exit status and the line to print, empty for all processes but the first.

    `root` is where train/, data_prep/ and configs/ are. Without --config it is the sample recipe, and what that needs
    is made first.
    """
    options = _parser(stage).parse_intermixed_args(argv)
    try:
        config = _read(stage, options, root)
        directory = run_stage(config)
    except KeyboardInterrupt:
        return 130, "Interrupted. The same command goes on from the last checkpoint." if is_main_process() else ""
    except Stopped as stopped:
        return stopping.EXIT_CODE, f"{stopped}. The same command goes on from there." if is_main_process() else ""
    except (ValueError, StoreError) as error:
        if options.traceback:
            raise
        if not is_main_process():
            time.sleep(5)  # the launcher ends this process when the first one failed likewise
        return 2, f"{distributed.process_name()}error: {error}"
    if not is_main_process():
        return 0, ""
    figures = json.loads((directory / FINISHED).read_text())
    return 0, f"{stage}: {figures['steps']} steps, loss {figures['loss']:.4f} -> {directory}"


def _parser(stage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"train/{stage}.py", description="Train a stage; the same command goes on after an interruption."
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted, as phases.density.learning_rate=1e-4"
    )
    parser.add_argument("--config", type=Path, help=f"settings (default: {SAMPLE_CONFIG.format(stage=stage)})")
    parser.add_argument("--deepspeed", type=Path, metavar="FILE", help="ZeRO settings, as configs/deepspeed/zero2.json")
    parser.add_argument("--no-verify-save", action="store_true", help="do not load what was saved again")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # given by the deepspeed launcher
    return parser


def _read(stage: str, options: argparse.Namespace, root: Path) -> StageConfig:
    path = options.config or root / SAMPLE_CONFIG.format(stage=stage)
    config = settings.load(StageConfig, path, options.overrides)
    if config.stage != stage:
        raise ValueError(f"{path} is of {config.stage}: run train/{config.stage}.py --config {path}.")
    if options.deepspeed is not None:
        config = config.model_copy(update={"deepspeed": options.deepspeed})
    if options.no_verify_save:
        config = config.model_copy(update={"verify_save": False})
    if config.deepspeed is not None and not config.deepspeed.is_file():
        raise ValueError(f"deepspeed: there is no file {config.deepspeed}. See configs/deepspeed/.")
    if options.config is None:
        config = _prepare_sample(config, root)
    return config


def _prepare_sample(config: StageConfig, root: Path) -> StageConfig:
    """Make missing sample data and the stage before, by their own commands; all processes but the first wait."""
    data = [path for phase in config.phases for path in phase.data if path.is_relative_to(SAMPLE_DATA)]
    _make(lambda: all(path.is_file() for path in data), "sample data", root / "data_prep" / "sample.py")
    before = config.start
    if before is None:
        return config
    application = root / "train" / f"{before.name}.py"
    if not application.is_file() and runs.latest(before) is None:
        raise ValueError(f"start: {before} holds no finished run. Train that stage first, or give another start=...")
    _make(lambda: runs.latest(before) is not None, f"{before}", application)
    start = runs.latest(before)
    if is_main_process():
        logger.info("Starting from %s.", start)
    return config.model_copy(update={"start": start})


def _make(there: Callable[[], bool], what: str, application: Path) -> None:
    if is_main_process() and not there():
        shown = f"python {'/'.join(application.parts[-2:])}"
        logger.info("There is no %s yet; making it: %s", what, shown)
        alone = without_launcher(os.environ)
        code = subprocess.run([sys.executable, str(application)], env=alone, check=False).returncode
        if code == 130:
            raise KeyboardInterrupt
        if code == stopping.EXIT_CODE:
            raise Stopped(f"{shown} stopped")
        if code or not there():
            raise ValueError(f"{what} could not be made: {shown} ended with status {code}; its message is above.")
    while not there():
        time.sleep(0.5)  # the launcher ends all processes when the first one fails
