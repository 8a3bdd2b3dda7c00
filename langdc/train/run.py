"""One training run, from its config to its checkpoint, and the command that starts one or several.

langdc train CONFIG [CONFIG ...] [key=value ...]         # by file or by name; also: python -m langdc.train
deepspeed train/stage2.py --config FILE                   # the same under a launcher, as torchrun and accelerate are

A run that was interrupted is resumed by the same command; a finished one is never overwritten. Exit codes: 0 done, 2 a
mistake in settings or data, 75 stopped by a signal after saving, 130 interrupted.
"""

import argparse
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from langdc import checkpoint, devices, distributed, jsonl
from langdc.config import RunConfig, find_config
from langdc.features import FeatureStore
from langdc.log import get_logger
from langdc.train import chain, output, stopping
from langdc.train.arguments import training_arguments
from langdc.train.batches import TrainingData
from langdc.train.learner import Learner
from langdc.train.objectives import objectives
from langdc.train.setup import RunModel, build
from langdc.train.stopping import Stopped

logger = get_logger(__name__)


def train(config: RunConfig) -> Path:
    """Train a run, or the rest of it, and return its directory, which `langdc.checkpoint.load` reads.

    `finished.json` in it: {"steps", "loss", "seconds", "samples", "flops", "hash" of the tensors saved}; `loss` is the
    mean over the last tenth of the log, `seconds` are those of training alone. Raises ValueError for settings or data
    that cannot work and for a loss that is no number, Stopped after a signal.
    """
    distributed.start(deepspeed=config.deepspeed is not None)
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    with output.resolve_output_dir(config) as directory:
        set_seed(config.seed)  # so that new parameters are the same in every process and after a resume
        objective = objectives.build(config.objective.name, **config.objective.settings)
        run = build(config, objective)
        run.model.to(devices.device())
        features = FeatureStore.of(run.model.backbone, config.features, config.features_dtype)
        data = TrainingData(run.model, objective, config, features)
        count = sum(run.model.get_parameter(name).numel() for name in run.trained)
        logger.info("%s: %d samples, %d trained parameters.", config.stage or config.output.name, len(data), count)
        objective.prepare(run.model, data, directory)

        started = time.monotonic()
        solved = objective.solve(run.model, data)
        if solved is not None:
            loss, flops = solved
            seconds = time.monotonic() - started
            figures = {"steps": 0, "loss": loss, "seconds": seconds, "samples": len(data), "flops": flops}
            distributed.main_process_first(lambda: _save(run, config, directory, data.data_hash(), figures))
        else:
            learner = Learner(run.model, objective, config.loss_weights, config.seed)
            _fit(learner, data, run, config, directory)
    return directory


def _save(run: RunModel, config: RunConfig, directory: Path, data_hash: str, figures: dict[str, Any]) -> None:
    """Write the checkpoint and, when it is proved whole, `finished.json`; by the main process, which sees all tensors."""
    tensors = run.tensors()
    broken = [name for name in run.trained & tensors.keys() if not tensors[name].isfinite().all()]
    if broken:
        raise ValueError(f"{len(broken)} trained tensors are not finite, such as {min(broken)}; nothing was saved.")
    figures = {**figures, "hash": checkpoint.tensor_hash(tensors)}
    info = {"stage": config.stage, "objective": config.objective.name, "data_sha256": data_hash, "training": figures}
    checkpoint.save(run.model, directory, tensors=tensors, lora=run.lora, info=info)
    if config.verify_save:
        hashes = {name: checkpoint.value_hash(tensor) for name, tensor in tensors.items()}
        figures["verified"] = checkpoint.verify_saved(directory, hashes)
    jsonl.write_json(directory / output.FINISHED, figures)


def _fit(
    learner: Learner, data: TrainingData, run: RunModel, config: RunConfig, directory: Path, features: FeatureStore
) -> None:
    """Train with the Trainer from the newest complete checkpoint, with or without DeepSpeed, and save.

    The module is not for use afterwards when DeepSpeed trained it.
    """
    resume, name = directory / output.RESUME, directory.name
    meter = Meter(learner, config.precision, config.peak_flops)
    log, bar = JsonLog(directory / output.LOG, _sample_counter(len(data), config)), Bar(name)
    shutdown = GracefulShutdown()
    watchdog = Watchdog(learner, config.watchdog) if config.watchdog is not None else None
    callbacks = [shutdown, *caption_eval(config, directory, run.model, features, meter), FiniteLoss()]
    trainer = RunTrainer(
        model=learner,
        args=training_arguments(config, resume, name),
        train_dataset=data,
        data_collator=data.collate,
        callbacks=[*callbacks, *((log, bar) if is_main_process() else ()), *([watchdog] if watchdog else ())],
        rates=config.train.rates,
        keep_checkpoints=config.keep_checkpoints,
        meter=meter,
    )
    open_trackers(trainer, directory, name)
    try:
        newest = distributed.broadcast(str(next(reversed(checkpoints(resume)), "")))
        if newest:
            logger.info("Resuming after step %s.", newest.rpartition("-")[2])
        with shutdown.listening(), watchdog or nullcontext():
            trainer.train(resume_from_checkpoint=newest or None)
        steps = trainer.state.global_step
        if steps < trainer.state.max_steps:
            raise Stopped(f"{name} stopped after step {steps} of {trainer.state.max_steps}")
        with _whole(trainer, run.written):
            distributed.main_process_first(lambda: _save(run, config, directory, data.data_hash(), _figures(trainer, log)))
        distributed.barrier()
    finally:
        bar.close()
        close_trackers()
        _release(trainer)
    if is_main_process():
        shutil.rmtree(resume, ignore_errors=True)
    distributed.barrier()
    if shutdown.requested:
        raise Stopped(f"{name} is done, all {steps} steps of it")
