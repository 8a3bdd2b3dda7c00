"""The transformers Trainer as stages need it: small checkpoints that only count when complete, two learning rates."""

import multiprocessing
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from langdc import distributed, jsonl
from langdc.distributed import rank, world_size
from langdc.training import universal
from langdc.training.meter import Meter
from langdc.training.runs import COMPLETE
from langdc.training.samples import settle
from langdc.training.sharing import IDLE, Marked, marked, share_evenly

TRAINED = "trained.safetensors"


class StageTrainer(Trainer):
    """The Trainer without frozen weights or half checkpoints on disk, with the objective's own count of FLOPs."""

    def __init__(
        self,
        *arguments: Any,
        projector_learning_rate: float | None = None,
        keep_checkpoints: int = 1,
        flops: Callable[[dict], float] | None = None,
        meter: Meter | None = None,
        **keywords: Any,
    ) -> None:
        if world_size() > 1:
            keywords["train_dataset"] = Marked(keywords["train_dataset"])
            keywords["data_collator"] = marked(keywords["data_collator"])
        super().__init__(*arguments, **keywords)
        self.projector_learning_rate = projector_learning_rate
        self.keep_checkpoints = keep_checkpoints
        self.flops = flops
        self.meter = meter
        self.model_accepts_loss_kwargs = True  # forward takes num_items_in_batch, whatever its signature looks like
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with up to four groups: projectors and the rest, with and without weight decay."""
        if self.optimizer is None:
            trained: Any = model or self.model
            groups = parameter_groups(
                trained,
                self.get_decay_parameter_names(trained),
                self.args.weight_decay,
                self.args.learning_rate,
                self.projector_learning_rate,
            )
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=self.args.adam_epsilon)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer does, but a step holds the same samples on any number of processes.

        Worker processes are forked: other kinds would be sent a copy of the model, which the data set knows.
        """
        loader = super().get_train_dataloader()
        if self.args.dataloader_num_workers and "fork" in multiprocessing.get_all_start_methods():
            getattr(loader, "base_dataloader", loader).multiprocessing_context = "fork"
        if world_size() > 1:
            share_evenly(loader.batch_sampler)
        return loader

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
        """As the Trainer does; nothing is learned from an idle batch, though all its calls are made."""
        idle = inputs.pop(IDLE, False)
        loss = super().compute_loss(model, inputs, *arguments, **keywords)
        return loss * 0 if idle else loss

    def floating_point_ops(self, inputs: dict) -> float:
        """Training FLOPs of a batch, forward and backward, as the objective counts them."""
        idle = IDLE in inputs
        if self.meter is not None:
            self.meter.add(idle)
        return self.flops(inputs) if self.flops and not idle else 0.0

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        """As the Trainer does, with the time it took."""
        with self.meter.waiting(self.state.total_flos) if self.meter is not None else nullcontext():
            found = super().get_batch_samples(epoch_iterator, num_batches, device)
            for batch in found[0]:
                settle(batch)
            return found

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """As the Trainer does, with the meter's figures, which so reach the file and every tracker."""
        if self.meter is not None and "loss" in logs:
            logs.update(self.meter.figures(self.state.total_flos))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained tensors; under DeepSpeed the engine writes its own shards later."""
        directory = Path(output_dir or str(self.args.output_dir))
        if not self.args.should_save:
            return
        directory.mkdir(parents=True, exist_ok=True)
        if not self.is_deepspeed_enabled:
            # Parameters appear once under their first name, so tied weights are no obstacle to safetensors.
            with jsonl.writing(directory / TRAINED) as partial:
                save_file({name: p.detach().contiguous() for name, p in trained_parameters(self.model)}, partial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / TRAINED)
        current = dict(trained_parameters(model or self.model))
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
        engine: Any = self.model_wrapped
        engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        scheduler: Any = self.lr_scheduler
        if self.args.should_save:
            with warnings.catch_warnings(action="ignore"):  # the scheduler belongs to torch, the optimizer to DeepSpeed
                torch.save(scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> tuple:
        """As the Trainer does, but DeepSpeed is told that frozen weights are not in its checkpoint."""
        if not (self.is_deepspeed_enabled and resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        universal.load(self.model_wrapped, Path(resume_from_checkpoint))
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        scheduler: Any = self.lr_scheduler
        engine: Any = self.model_wrapped
        for group, rate in zip(engine.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        return prepared

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As the Trainer does; a process that the run did not have before throws dice of its own, not the first's."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        name = f"rng_state_{rank()}.pth" if world_size() > 1 else "rng_state.pth"
        if not (Path(checkpoint) / name).is_file():
            set_seed(hash((self.args.seed, self.state.global_step, rank())) % 2**32)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        distributed.barrier()
        if self.args.should_save:
            directory = Path(str(self.args.output_dir))
            newest = directory / f"checkpoint-{self.state.global_step}"
            jsonl.sync_folder(newest)  # before it counts as complete, and before older ones go
            jsonl.write_text(newest / COMPLETE, "")
            for old in checkpoints(directory)[: -self.keep_checkpoints]:
                (old / COMPLETE).unlink()
                shutil.rmtree(old)


def trained_parameters(module: Any) -> Iterable[tuple[str, nn.Parameter]]:
    """What of a module is trained, by name; tied parameters once."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def parameter_groups(
    model: nn.Module, decayed: Iterable[str], weight_decay: float, rate: float, projector_rate: float | None
) -> list[dict[str, Any]]:
    """Group trained parameters: those with "projector" in the name have their own rate, biases and norms no decay."""
    decayed = set(decayed)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model):
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
        self.set_epoch: Callable[[int], None] = getattr(dataset, "set_epoch", lambda epoch: None)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Tell the dataset; accelerate does so in runs of one process only."""
        self.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Amend what the Trainer decided to do after this step."""
        last = state.global_step >= state.max_steps
        control.should_save = control.should_save and not last
        control.should_log = control.should_log or control.should_save or last
