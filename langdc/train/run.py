"""One training run, from its config to its checkpoint, and the command that starts one or several.

langdc train CONFIG [CONFIG ...] [key=value ...]         # by file or by name; also: python -m langdc.train
deepspeed train/stage2.py --config FILE                   # the same under a launcher, as torchrun and accelerate are

A run that was interrupted is resumed by the same command; a finished one is never overwritten. Exit codes:
docs/failures.md.
"""

import argparse
import gc
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from langdc import checkpoint, devices, distributed, jsonl
from langdc.config import RunConfig
from langdc.distributed import is_main_process
from langdc.failures import TRACEBACK_VARIABLE, guarded, run_command
from langdc.features import FeatureStore
from langdc.hashing import tensor_hash, tensors_hash
from langdc.log import get_logger, progress
from langdc.text import plain
from langdc.tools.options import add_outside
from langdc.train import chain, output
from langdc.train.arguments import check_environment, training_arguments
from langdc.train.batches import TrainingData
from langdc.train.finite import ADVICE
from langdc.train.learner import Learner
from langdc.train.meter import Meter
from langdc.train.objectives import objectives
from langdc.train.progress import Bar, JsonLog
from langdc.train.setup import RunModel
from langdc.train.stopping import GracefulShutdown, Stopped
from langdc.train.tracking import CaptionEval, tracked
from langdc.train.trainer import BEST_FILE, RunTrainer
from langdc.train.validation import Validation, split, validation_data
from langdc.watchdog import Watchdog, beat

logger = get_logger(__name__)


def train(config: RunConfig) -> Path:
    """Train a run, or the rest of it, and return its directory, which `langdc.checkpoint.load` reads.

    `finished.json` in it: {"steps", "loss", "seconds", "samples", "flops", "hash" of the tensors saved}; `loss` is the
    mean over the last tenth of the log, `seconds` are those of training alone. Raises ValueError for settings or data
    that cannot work and for a loss that is no number; Stopped after a signal.
    """
    check_environment(config)
    distributed.start(deepspeed=config.deepspeed is not None)
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    with output.resolve_output_dir(config) as directory, ExitStack() as watched:
        set_seed(config.seed)  # so that new parameters are the same in every process and after a resume
        objective = objectives.build(config.objective.name, **config.objective.settings)
        run = RunModel.of(config, objective, devices.device())
        watched.enter_context(Watchdog(config.watchdog, directory))
        saliency = "saliency" in run.model.compressor.needs
        # frozen parts are in bfloat16 where the steps are, trained ones are not
        with torch.autocast(devices.device().type, torch.bfloat16, config.precision == "bfloat16"):
            features = FeatureStore.of(run.model.backbone, config.features, config.features_dtype, saliency)
            samples, held_out = split(run.model, objective, config)
            media = dict.fromkeys(spec.path for sample in (*samples, *held_out) for spec in sample.specs)
            distributed.main_process_first(lambda: output.check_unchanged(config, directory, list(media)))
            data = TrainingData(run.model, objective, config, features, samples)
            objective.prepare(run.model, data, directory)
            measured = validation_data(data, held_out, directory) if held_out else None
        count = sum(run.model.get_parameter(name).numel() for name in run.trained)
        logger.info("%s: %d samples, %d trained parameters.", directory.name, data.epoch_length, count)
        started = time.monotonic()
        if (solved := objective.solve(run.model, data)) is None:
            _fit(run, data, measured, directory)
        else:
            figures = {"steps": 0, "loss": solved[0], "samples": len(data), "flops": solved[1]}
            figures["seconds"] = time.monotonic() - started
            distributed.main_process_first(lambda: _save(run, data, directory, figures))
    return directory


def _fit(run: RunModel, data: TrainingData, measured: TrainingData | None, directory: Path) -> None:
    """Train from the newest complete checkpoint, with or without DeepSpeed, and save. `measured`: for validation.

    The model is not for use afterwards when DeepSpeed trained it. Raises Stopped, after saving, when a signal came.
    """
    config, resume, name = data.config, directory / output.RESUME, directory.name
    learner = Learner(run.model, data.objective, config.loss_weights, config.seed)
    meter = Meter(learner, config.precision, config.peak_flops)
    step = config.train.batch_size * config.train.gradient_accumulation * distributed.world_size()
    items, per_epoch = data.epoch_length, -(-data.epoch_length // step)
    # how many samples have been trained on; the last step of an epoch may be a smaller one
    log = JsonLog(
        directory / output.LOG, lambda steps: steps // per_epoch * items + min(steps % per_epoch * step, items)
    )
    bar, shutdown = Bar(name), GracefulShutdown()
    callbacks = [shutdown, *CaptionEval.of(config, directory, run.model, data.features, meter)]
    callbacks += [log, bar] if is_main_process() else []
    trainer = RunTrainer(learner, data, training_arguments(config, resume, name), meter, callbacks)
    validation = Validation(trainer, measured) if measured is not None else None
    if validation is not None:
        trainer.add_callback(validation)
    try:
        whole: list[Path | None] = []
        distributed.main_process_first(lambda: whole.append(output.newest_whole(resume)))
        newest = distributed.broadcast(str(whole[0] or "") if whole else "")
        if newest:
            logger.info("Resuming after step %s.", newest.rpartition("-")[2])
        with tracked(trainer, directory), shutdown.listening():
            trainer.train(resume_from_checkpoint=newest or None)
            shutdown.agree()  # a signal may have come after the last step
        steps = trainer.state.global_step
        if steps < trainer.state.max_steps and not (validation is not None and validation.stopped):
            raise Stopped(f"{name} stopped after step {steps} of {trainer.state.max_steps}")
        with trainer.averaged(), trainer.gathered(*run.written):
            best = trainer if validation is not None else None
            distributed.main_process_first(lambda: _save(run, data, directory, log.figures(), best))
    finally:
        bar.close()
        # let go of the engine, so that the next run of a chain, or a model built for it, finds no traces of DeepSpeed
        if trainer.is_deepspeed_enabled:
            engine: Any = trainer.deepspeed
            if engine is not None:  # None when training never began
                engine.destroy()
            unset_hf_deepspeed_config()
            if config.deepspeed is not None:  # accelerate sets it, and so for all runs that follow
                os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        trainer.accelerator.free_memory()
        gc.collect()
    if is_main_process():
        shutil.rmtree(resume, ignore_errors=True)
    distributed.barrier()
    if shutdown.requested:
        raise Stopped(f"{name} is done, all {steps} steps of it")


def _save(
    run: RunModel, data: TrainingData, directory: Path, figures: dict[str, Any], validated: RunTrainer | None = None
) -> None:
    """Write the checkpoint, the best one beside it if the run was `validated` and, last, `finished.json`.

    By the main process, which sees all tensors whole; the model has the best ones afterwards.
    """
    figures = _write(run, data, directory, figures)
    if validated is not None:
        validated.load_trained(directory / output.RESUME / BEST_FILE)
        step = validated.state.best_global_step
        line = next(line for line in jsonl.read(directory / output.LOG) if line["step"] == step)
        found = {name: value for name, value in line.items() if name.startswith("eval_")}
        figures["best"] = _write(run, data, directory / output.BEST, {"steps": step, "loss": line["loss"], **found})
    jsonl.flush(*directory.glob("*.jsonl"))  # or a power cut leaves a finished run without the end of its log
    jsonl.write_json(directory / output.FINISHED, figures)


def _write(run: RunModel, data: TrainingData, directory: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Write a checkpoint, and load it again where the config asks for that; the figures with what was seen of it."""
    config, tensors = data.config, run.tensors()
    broken = sorted(name for name in run.trained & tensors.keys() if not tensors[name].isfinite().all())
    if broken or not math.isfinite(figures["loss"]):
        what = f"{len(broken)} trained tensors, such as {broken[0]}, are" if broken else "The loss is"
        raise ValueError(f"{what} NaN or infinite, so nothing is saved. {ADVICE}")
    figures = {**figures, "hash": tensors_hash(tensors)}
    info = {"stage": config.stage, "objective": config.objective.name, "data_sha256": data.hash(), "training": figures}
    info |= {"ema": config.train.ema} if config.train.ema is not None else {}
    with progress(f"Writing {directory}"):
        checkpoint.save(run.model, directory, tensors=tensors, lora=run.lora, info=info)
        if config.verify_save:
            beat(f"writing {directory}, which a fresh process reads again")
            hashes = {name: tensor_hash(tensor, torch.float32) for name, tensor in tensors.items()}
            figures["verified"] = checkpoint.verify_saved(directory, hashes)
    return figures


def main(argv: Sequence[str] | None = None, stage: str | None = None) -> int:
    """Train the runs that a command line names, in order; the exit code, also of an error (`langdc.failures`).

    `stage`: which one of the sample recipe is trained where no run is named.
    """
    return guarded(lambda words: _run(words, stage), sys.argv[1:] if argv is None else argv)


def _run(argv: list[str], stage: str | None) -> int:
    parser = argparse.ArgumentParser(
        prog="langdc train", description="Train one config, or several in order; the same command resumes."
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help="config files or names (a folder: its chain.yaml), and settings of all of them, as train.steps=50",
    )
    parser.add_argument("--config", metavar="FILE", help="a config, by an option")
    parser.add_argument("--processes", type=int, metavar="N", help="train on N devices (or CPUs) of this machine")
    parser.add_argument("--deepspeed", metavar="FILE", help="ZeRO settings, as deepspeed/zero2.json")
    parser.add_argument("--quarantine", metavar="FILE", help="records to leave out, as langdc data check lists them")
    add_outside(parser)
    parser.add_argument("--verify-save", action="store_true", help="load what was saved in a fresh process and compare")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # given by the deepspeed launcher
    options = parser.parse_intermixed_args(argv)
    names = [word for word in [options.config, *options.words] if word is not None and "=" not in word]
    overrides = [word for word in options.words if "=" in word]
    overrides += [f"deepspeed={options.deepspeed}"] if options.deepspeed else []
    overrides += [f"train.quarantine={options.quarantine}"] if options.quarantine else []
    overrides += ["verify_save=true"] if options.verify_save else []
    overrides += ["train.allow_outside=true"] if options.allow_outside else []
    if not names and stage is None:
        raise ValueError("Give a config: a file, or a name such as sample/langdc/stage1.")
    names = names or chain.prepared(str(stage))
    if options.processes is not None:  # the same on several, with the `deepspeed` launcher
        launcher = ["deepspeed.launcher.runner", "--num_accelerators", str(options.processes), "--module"]
        words = [*launcher, "langdc.train", *names, *overrides, *["--traceback"] * (TRACEBACK_VARIABLE in os.environ)]
        return run_command([sys.executable, "-m", *words], launcher=True)
    directory = chain.run(chain.read(names, overrides), train)
    figures = jsonl.read_json(directory / output.FINISHED)
    if is_main_process():
        message = f"{directory.name}: {figures['steps']} steps, loss {figures['loss']:.4f} -> {directory}"
        sys.stdout.write(f"{plain(message)}\n")
    return 0
