"""One phase of training on the transformers Trainer, with or without DeepSpeed, that goes on exactly where it was killed.

What is trained is an `nn.Module` whose forward(**batch) returns {"loss": ...}; how it was built is not known here.
"""

import gc
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import deepspeed_load_checkpoint, unset_hf_deepspeed_config
from transformers.trainer_utils import SchedulerType

from langdc.config import PhaseConfig, StageConfig
from langdc.log import get_logger, is_first, world_size
from langdc.registry import nearest
from langdc.training import processes
from langdc.training.progress import Bar, JsonLog, read_log


logger = get_logger(__name__)

TRAINED = "trained.safetensors"
COMPLETE = "complete"
ADVICE = {
    "wandb": "pip install wandb (WANDB_MODE=offline needs no account)",
    "tensorboard": "pip install tensorboard",
}


@dataclass(frozen=True)
class Outcome:
    """What a phase came to. `loss` is the mean over the last tenth of the logged steps; `seconds` are training's own."""

    steps: int
    loss: float
    seconds: float
    samples: int
    flops: float


class StageTrainer(Trainer):
    """The Trainer, but frozen weights are not saved, checkpoints count only when complete, and FLOPs are the objective's."""

    def __init__(
        self,
        *arguments: Any,
        projector_learning_rate: float | None = None,
        keep_checkpoints: int = 1,
        flops: Callable[[dict], float] | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.projector_learning_rate = projector_learning_rate
        self.keep_checkpoints = keep_checkpoints
        self.flops = flops
        self.model_accepts_loss_kwargs = True  # forward takes num_items_in_batch, whatever its signature looks like
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with up to four groups: projectors and the rest, with and without weight decay."""
        if self.optimizer is None:
            groups = parameter_groups(
                model or self.model,
                self.get_decay_parameter_names(model or self.model),
                self.args.weight_decay,
                self.args.learning_rate,
                self.projector_learning_rate,
            )
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=self.args.adam_epsilon)
        return self.optimizer

    def floating_point_ops(self, inputs: dict) -> float:
        """Training FLOPs of a batch, forward and backward, as the objective counts them."""
        return self.flops(inputs) if self.flops else 0.0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained tensors; under DeepSpeed the engine writes its own shards later."""
        directory = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        directory.mkdir(parents=True, exist_ok=True)
        if not self.is_deepspeed_enabled:
            # Parameters appear once under their first name, so tied weights are no obstacle to safetensors.
            save_file({name: p.detach().contiguous() for name, p in _trained(self.model)}, directory / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / TRAINED)
        current = dict(_trained(model or self.model))
        if saved.keys() != current.keys():
            names = ", ".join(sorted(saved.keys() ^ current.keys())[:5])
            raise ValueError(f"{resume_from_checkpoint} holds other trained tensors than this phase: {names}.")
        with torch.no_grad():
            for name, parameter in current.items():
                parameter.copy_(saved[name])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            with warnings.catch_warnings(action="ignore"):  # the scheduler belongs to torch, the optimizer to DeepSpeed
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> tuple:
        """As the Trainer does, but DeepSpeed is told that frozen weights are not in its checkpoint."""
        if not (self.is_deepspeed_enabled and resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        deepspeed_load_checkpoint(self.model_wrapped, resume_from_checkpoint, load_module_strict=False)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        processes.wait()
        if self.args.should_save:
            directory = Path(self.args.output_dir)
            (directory / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()
            for old in checkpoints(directory)[: -self.keep_checkpoints]:
                (old / COMPLETE).unlink()
                shutil.rmtree(old)


def _trained(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def parameter_groups(
    model: nn.Module, decayed: Iterable[str], weight_decay: float, rate: float, projector_rate: float | None
) -> list[dict[str, Any]]:
    """Optimizer groups of the trained parameters: "projector" in the name has its own rate, biases and norms no decay."""
    decayed = set(decayed)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in _trained(model):
        own_rate = projector_rate is not None and "projector" in name
        groups.setdefault((own_rate, name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": projector_rate if own_rate else rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (own_rate, decays), parameters in groups.items()
    ]


def checkpoints(directory: Path) -> list[Path]:
    """The complete Trainer checkpoints in a directory, oldest first; one that a kill cut short does not count."""
    found = [path.parent for path in directory.glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


class Flow(TrainerCallback):
    """Draws the data of the right epoch, logs wherever a checkpoint is written, and writes none at the very end.

    A line at each checkpoint makes the log of a run that was killed equal to one that was not; after the last step the
    phase's own checkpoint follows at once, and the Trainer would train on when it starts from a last step.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """accelerate tells the dataset its epoch in runs of one process only."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Runs after the Trainer's own decisions of what to do after a step."""
        last = state.global_step >= state.max_steps
        control.should_save = control.should_save and not last
        control.should_log = control.should_log or control.should_save or last


def run_phase(
    module: nn.Module,
    dataset: Dataset,
    collate: Callable[[list], dict],
    phase: PhaseConfig,
    config: StageConfig,
    directory: Path,
    *,
    save: Callable[[Outcome], None],
    gather: Iterable[nn.Parameter] = (),
    samples_per_item: int = 1,
    flops: Callable[[dict], float] | None = None,
) -> Outcome:
    """Train a module on a dataset as a phase says; goes on from the newest complete checkpoint of the same phase.

    `directory` is the run's: `log.jsonl` grows in it, checkpoints to continue from live in `resume/<phase>` until the
    phase is done. At the end `save` is called on the first process while it sees all trained parameters, and those in
    `gather`, whole (ZeRO-3 cuts them up otherwise). Needs `processes.start`. The module is not for use afterwards when
    DeepSpeed trained it.
    """
    resume = directory / "resume" / phase.name
    arguments = training_arguments(phase, config, resume, f"{directory.name}/{phase.name}")
    samples_at = _sample_counter(len(dataset), phase, samples_per_item)
    log, bar = JsonLog(directory / "log.jsonl", phase.name, samples_at), Bar(phase.name)
    trainer = StageTrainer(
        model=module,
        args=arguments,
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[Flow(dataset), *((log, bar) if is_first() else ())],
        projector_learning_rate=phase.projector_learning_rate,
        keep_checkpoints=config.keep_checkpoints,
        flops=flops,
    )
    try:
        newest = processes.share(str(next(reversed(checkpoints(resume)), "")))
        if newest:
            logger.info("%s goes on after step %s.", phase.name, newest.rpartition("-")[2])
        trainer.train(resume_from_checkpoint=newest or None)
        outcome = _outcome(trainer, log, samples_at)
        _finish(trainer, gather, lambda: save(outcome))
    finally:
        bar.close()
        _release(trainer)
    if is_first():
        shutil.rmtree(resume, ignore_errors=True)
    processes.wait()
    return outcome


def training_arguments(phase: PhaseConfig, config: StageConfig, directory: Path, name: str) -> TrainingArguments:
    """The Trainer's settings for a phase; ValueError for what this machine cannot do."""
    if phase.schedule not in [kind.value for kind in SchedulerType]:
        raise ValueError(f"schedule: {phase.schedule!r} is none.{nearest(phase.schedule, list(SchedulerType))}")
    if config.precision == "float16" and not processes.has_accelerator():
        raise ValueError("precision: float16 needs an accelerator; on a CPU use float32 or bfloat16.")
    for tracker in config.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"trackers: {tracker} is not installed. {ADVICE[tracker]}, or take it off the list.")
    os.environ.setdefault("WANDB_PROJECT", "langdc")
    arguments = TrainingArguments(
        output_dir=str(directory),
        run_name=name,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not processes.has_accelerator(),
        bf16=config.precision == "bfloat16",
        fp16=config.precision == "float16",
        deepspeed=str(config.deepspeed) if config.deepspeed else None,
        per_device_train_batch_size=phase.batch_size,
        gradient_accumulation_steps=phase.gradient_accumulation,
        max_steps=phase.steps or -1,
        num_train_epochs=phase.epochs or 1.0,
        learning_rate=phase.learning_rate,
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
    if is_first():
        losses = [line["loss"] for line in read_log(log.path, log.phase)]
        loss = fmean(losses[-max(1, len(losses) // 10) :])
        outcome = Outcome(steps, loss, round(log.seconds, 3), samples_at(steps), trainer.state.total_flos)
    outcome = processes.share(outcome)
    assert outcome is not None
    return outcome


def _finish(trainer: StageTrainer, gather: Iterable[nn.Parameter], save: Callable[[], None]) -> None:
    whole: Any = nullcontext()
    if trainer.is_deepspeed_enabled:
        import deepspeed

        cut = {id(p): p for p in (*(p for _, p in _trained(trainer.model)), *gather) if hasattr(p, "ds_id")}
        whole = deepspeed.zero.GatheredParameters(list(cut.values()))
    with whole:
        if is_first():
            save()
    processes.wait()


def _release(trainer: StageTrainer) -> None:
    """Let go of the engine, so that the next phase, or a model built for it, meets no traces of DeepSpeed."""
    if trainer.is_deepspeed_enabled:
        if trainer.deepspeed is not None:
            trainer.deepspeed.destroy()
        unset_hf_deepspeed_config()
    trainer.accelerator.free_memory()
    gc.collect()
