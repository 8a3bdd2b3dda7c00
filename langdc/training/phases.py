"""One phase of training, with or without DeepSpeed, that goes on exactly where it was killed.

What is trained is an `nn.Module` whose forward(**batch) returns {"loss": ...}; how it was built is not known here.
"""

import gc
import importlib.util
import shutil
from collections.abc import Callable, Iterable, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_utils import SchedulerType

from langdc import devices, distributed
from langdc.config import PhaseConfig, StageConfig
from langdc.distributed import is_main_process, world_size
from langdc.log import get_logger
from langdc.registry import nearest
from langdc.training.meter import Meter
from langdc.training.progress import Bar, JsonLog, read_log
from langdc.training.stopping import Stop, Stopped
from langdc.training.tracking import close_trackers, open_trackers
from langdc.training.trainer import Flow, StageTrainer, checkpoints, trained_parameters
from langdc.training.watchdog import Watchdog

logger = get_logger(__name__)

ADVICE = {
    "wandb": "pip install wandb (WANDB_MODE=offline needs no account)",
    "tensorboard": "pip install 'langdc[tensorboard]'",
}


@dataclass(frozen=True)
class Outcome:
    """What a phase came to: `loss` is the mean over the last tenth of the log, `seconds` are of training alone."""

    steps: int
    loss: float
    seconds: float
    samples: int
    flops: float


def run_phase(
    module: nn.Module,
    dataset: Dataset,
    collate: Callable[[list], dict],
    phase: PhaseConfig,
    config: StageConfig,
    directory: Path,
    *,
    save: Callable[[Outcome], None],
    before_save: Callable[[], None] = lambda: None,
    gather: Iterable[nn.Parameter] = (),
    samples_per_item: int = 1,
    flops: Callable[[dict], float] | None = None,
    meter: Meter | None = None,
    callbacks: Iterable[TrainerCallback] = (),
) -> Outcome:
    """Train a module on a dataset as a phase says; goes on from the newest complete checkpoint of the same phase.

    `directory` is the run's: `log.jsonl` grows in it, checkpoints to continue from live in `resume/<phase>` until the
    phase is done. At the end `before_save` is called on all processes, then `save` on the first while it sees all
    trained parameters, and those in `gather`, whole (ZeRO-3 cuts them up otherwise); a ValueError of it is raised in
    all, and the checkpoints stay. Needs `distributed.start`. The module is not for use afterwards when DeepSpeed
    trained it. Raises Stopped, after saving, when a signal asked for it.
    """
    resume = directory / "resume" / phase.name
    arguments = training_arguments(phase, config, resume, f"{directory.name}/{phase.name}")
    samples_at = _sample_counter(_size(dataset), phase, samples_per_item)
    log, bar = JsonLog(directory / "log.jsonl", phase.name, samples_at), Bar(phase.name)
    stop, watchdog = Stop(), Watchdog(module, config.watchdog) if config.watchdog is not None else None
    own = [
        stop,
        Flow(dataset),
        *callbacks,
        *((log, bar) if is_main_process() else ()),
        *([watchdog] if watchdog else ()),
    ]
    trainer = StageTrainer(
        model=module,
        args=arguments,
        train_dataset=dataset,
        data_collator=collate,
        callbacks=own,
        projector_learning_rate=phase.projector_learning_rate,
        keep_checkpoints=config.keep_checkpoints,
        flops=flops,
        meter=meter or Meter(module, config.precision, config.peak_flops),
    )
    open_trackers(trainer, directory, phase.name)
    try:
        newest = distributed.broadcast(str(next(reversed(checkpoints(resume)), "")))
        if newest:
            logger.info("%s goes on after step %s.", phase.name, newest.rpartition("-")[2])
        stop.listen()
        try:
            trainer.train(resume_from_checkpoint=newest or None)
            stop.agree()  # a signal may have come after the last step
        finally:
            stop.close()
            if watchdog is not None:
                watchdog.close()
        if trainer.state.global_step < trainer.state.max_steps:
            raise Stopped(f"{phase.name} stopped after step {trainer.state.global_step} of {trainer.state.max_steps}")
        outcome = _outcome(trainer, log, samples_at)
        _finish(trainer, gather, before_save, lambda: save(outcome))
    finally:
        bar.close()
        close_trackers()
        _release(trainer)
    if is_main_process():
        shutil.rmtree(resume, ignore_errors=True)
    distributed.barrier()
    if stop.asked:
        raise Stopped(f"{phase.name} is done, all {outcome.steps} steps of it")
    return outcome


def training_arguments(phase: PhaseConfig, config: StageConfig, directory: Path, name: str) -> TrainingArguments:
    """The Trainer's settings for a phase; ValueError for what this machine cannot do."""
    if phase.schedule not in [kind.value for kind in SchedulerType]:
        raise ValueError(f"schedule: {phase.schedule!r} is none.{nearest(phase.schedule, list(SchedulerType))}")
    if config.precision == "float16" and not devices.has_accelerator():
        raise ValueError("precision: float16 needs an accelerator; on a CPU use float32 or bfloat16.")
    for tracker in config.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"trackers: {tracker} is not installed. {ADVICE[tracker]}, or take it off the list.")
    arguments = TrainingArguments(
        output_dir=str(directory),
        run_name=name,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not devices.has_accelerator(),
        bf16=config.precision == "bfloat16",
        fp16=config.precision == "float16",
        deepspeed=str(config.deepspeed) if config.deepspeed else None,
        per_device_train_batch_size=phase.batch_size,
        gradient_accumulation_steps=phase.gradient_accumulation,
        max_steps=phase.steps or -1,
        num_train_epochs=phase.epochs or 1.0,
        learning_rate=phase.learning_rate,
        adam_beta2=phase.adam_beta2,
        lr_scheduler_type=phase.schedule,
        warmup_steps=phase.warmup,
        weight_decay=phase.weight_decay,
        max_grad_norm=phase.clip,
        save_strategy="steps",
        save_steps=config.save_steps,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        report_to=list(config.trackers) or "none",
        dataloader_num_workers=config.workers,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
    )
    if world_size() == 1 and arguments.device.type != "cpu":
        arguments._n_gpu = 1  # several cards and plain python would mean DataParallel, which cuts batches blindly
    return arguments


def _size(dataset: Dataset) -> int:
    assert isinstance(dataset, Sized)
    return len(dataset)


def _sample_counter(items: int, phase: PhaseConfig, samples_per_item: int) -> Callable[[int], int]:
    """How many samples have been learned from after so many steps; the last step of an epoch may be a small one."""
    step = phase.batch_size * phase.gradient_accumulation * world_size()
    per_epoch = -(-items // step)

    def samples_at(steps: int) -> int:
        epochs, rest = divmod(steps, per_epoch)
        return samples_per_item * (epochs * items + min(rest * step, items))

    return samples_at


def _outcome(trainer: StageTrainer, log: JsonLog, samples_at: Callable[[int], int]) -> Outcome:
    steps = trainer.state.global_step
    outcome = None
    if is_main_process():
        losses = [line["loss"] for line in read_log(log.path, log.phase)]
        loss = fmean(losses[-max(1, len(losses) // 10) :])
        outcome = Outcome(steps, loss, round(log.seconds, 3), samples_at(steps), trainer.state.total_flos)
    outcome = distributed.broadcast(outcome)
    assert outcome is not None
    return outcome


def _finish(
    trainer: StageTrainer, gather: Iterable[nn.Parameter], before: Callable[[], None], save: Callable[[], None]
) -> None:
    whole: Any = nullcontext()
    before()
    if trainer.is_deepspeed_enabled:
        import deepspeed

        engine: Any = trainer.deepspeed
        engine.empty_partition_cache()  # what was fetched ahead, of whatever ran last
        cut = {id(p): p for p in (*(p for _, p in trained_parameters(trainer.model)), *gather) if hasattr(p, "ds_id")}
        whole = deepspeed.zero.GatheredParameters(list(cut.values()))
    with whole:
        distributed.main_process_first(save)
    distributed.barrier()


def _release(trainer: StageTrainer) -> None:
    """Let go of the engine, so that the next phase, or a model built for it, meets no traces of DeepSpeed."""
    if trainer.is_deepspeed_enabled:
        engine: Any = trainer.deepspeed
        if engine is not None:  # None when training never began
            engine.destroy()
        unset_hf_deepspeed_config()
    trainer.accelerator.free_memory()
    gc.collect()
