"""The transformers Trainer as runs need it.

It adds: losses divided over the whole step by name, equal batches on any number of processes, checkpoints of the
trained tensors only, which count only when complete, learning rates by pattern, elastic resume.
"""

import math
import multiprocessing
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import set_seed

from langdc import checkpoint, distributed, jsonl
from langdc.failures import errors_naming
from langdc.train import elastic
from langdc.train.batches import TrainingData
from langdc.train.ema import Ema
from langdc.train.finite import ADVICE, FiniteCheck
from langdc.train.learner import Learner
from langdc.train.meter import Meter
from langdc.train.mixing import grouped
from langdc.train.output import COMPLETE, checkpoints, mark_complete
from langdc.watchdog import beat, noting_modules

TRAINED = "trained.safetensors"
EMA = "ema.safetensors"
OVERFLOW = "In float16 the gradients overflow with every scale of the loss"
BEST_FILE = "best.safetensors"
"""The trained tensors with the lowest validation loss so far; each checkpoint has a copy of those that it knows."""


class RunTrainer(Trainer):
    """Trains a learner on the batches of a run's data; the meter counts what it learns."""

    def __init__(
        self,
        learner: Learner,
        data: TrainingData,
        arguments: TrainingArguments,
        meter: Meter,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(learner, arguments, data.collate, data, callbacks=list(callbacks))
        self.learner, self.data, self.meter = learner, data, meter
        length = data.length if data.config.train.group_by_length else None
        self.batches = EvenBatchSampler(
            data.epoch_length,
            arguments.per_device_train_batch_size,
            arguments.seed,
            data.epoch_samples,
            length,
            arguments.gradient_accumulation_steps,
        )
        self.add_callback(_EpochCallback(self))
        self.ema: Ema | None = None
        self.finite = FiniteCheck(self)
        self._batches: list[dict[str, Any]] = []  # of the step
        self._losses: list[Tensor] = []
        self.model_accepts_loss_kwargs = True  # forward takes num_items_in_batch, whatever its signature looks like
        self.remove_callback(PrinterCallback)

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """As the Trainer does, with the parts of the module that belong in an engine."""
        with self.learner.engine_parts(), noting_modules(self.learner):
            output = super().train(*arguments, **keywords)
            if self.is_deepspeed_enabled:
                engine: Any = self.deepspeed
                engine.empty_partition_cache()  # what was fetched ahead, of whatever ran last
            return output

    # ---- batches and losses

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this process."""
        workers = self.args.dataloader_num_workers
        # workers of other kinds would be sent a copy of the model, which the data set knows
        fork = workers and "fork" in multiprocessing.get_all_start_methods()
        return DataLoader(
            self.data,
            batch_sampler=self.batches,
            collate_fn=self.data.collate,
            num_workers=workers,
            pin_memory=self.args.device.type != "cpu",
            multiprocessing_context="fork" if fork else None,
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        """As the Trainer does, with the time it took."""
        with self.meter.waiting(self.state.total_flos):
            found = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._batches, self._losses = found[0], []
        return found

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """The count of each loss in the whole step, at least 1, by name, and its number of "batches".

        Tensors that nobody reads on the host; of one process they stay there.
        """
        names = self.learner.names
        filled = [batch["counts"] for batch in batch_samples if batch["counts"]]  # padding has none
        found = torch.tensor([len(filled), *(sum(c.get(name, 0) for c in filled) for name in names)])
        if self.args.world_size > 1:
            found = found.to(device, non_blocking=True)
            dist.all_reduce(found)
        return dict(zip(("batches", *names), found.clamp(min=1).unbind(), strict=True))

    def floating_point_ops(self, inputs: dict) -> float:
        """What the batch just learned took, forward and backward, as the module counts."""
        self.meter.add()
        return self.learner.flops

    def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
        """As the Trainer does; the loss is kept, unread, until the gradients are known."""
        try:
            self._losses.append(super().training_step(*arguments, **keywords))
        except Exception as error:  # DeepSpeed's has no class of its own
            if "loss scale already at minimum" not in str(error):
                raise
            raise ValueError(f"{OVERFLOW} at step {self.state.global_step + 1}. {ADVICE}") from None
        return self._losses[-1]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As the Trainer does; a step that is not finite, and those after it, change nothing: see `FiniteCheck`."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        broken = self.finite.note(self._batches, self._losses, None if self.args.fp16 else norm)
        if not (self.is_deepspeed_enabled or self.args.fp16):  # these skip such steps themselves
            cast(Any, self.optimizer).optimizer.found_inf = broken  # torch's fused optimizers then leave all as it is
        return norm

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """As the Trainer does, with the meter's figures. ValueError as `FiniteCheck.check`; a checkpoint is written
        only after a line of the log.
        """
        if "loss" in logs:
            logs.update(self.meter.figures(self.state.total_flos))
        super().log(logs, start_time)
        self.finite.check()
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < 1:  # halved at each overflow
            raise ValueError(f"{OVERFLOW} by step {self.state.global_step}. {ADVICE}")

    # ---- parameters

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a group per learning rate, with and without weight decay; torch's fused one, on any device, which
        needs no compiler. DeepSpeed makes its own where its settings name one.
        """
        if self.optimizer is None:
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = torch.optim.AdamW(self.groups(), betas=betas, eps=self.args.adam_epsilon, fused=True)
        return self.optimizer

    def groups(self) -> list[dict[str, Any]]:
        """Trained parameters by learning rate, those with weight decay apart; the first pattern that matches counts.

        ValueError for a pattern of `train.rates` that matches none of them.
        """
        rates, used = self.data.config.train.rates, set()
        decayed = set(self.get_decay_parameter_names(self.learner))  # pyright: ignore[reportArgumentType]
        groups: dict[tuple[float | None, bool], list[nn.Parameter]] = {}
        for name, parameter in self.trained().items():
            own = name.removeprefix("model.")  # as in `train.trainable`
            pattern = next((pattern for pattern in rates if fnmatchcase(own, pattern)), "")
            used.add(pattern)
            rate = rates.get(pattern, self.args.learning_rate)
            groups.setdefault((rate, name in decayed), []).append(parameter)
        if unused := [pattern for pattern in rates if pattern not in used]:
            raise ValueError(
                f"train.rates: {', '.join(map(repr, unused))} matches no trained parameter that is left to it."
            )
        return [
            {"params": parameters, "lr": rate, "weight_decay": self.args.weight_decay if decays else 0.0}
            for (rate, decays), parameters in groups.items()
        ]

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the module by name; tied ones once."""
        return {name: parameter for name, parameter in self.learner.named_parameters() if parameter.requires_grad}

    # ---- checkpoints

    def _changing(self) -> dict[str, Tensor]:
        """What a checkpoint of the Trainer holds of the module: trained parameters, and buffers."""
        found = checkpoint.buffers(self.learner.model)
        return {**self.trained(), **{f"model.{name}": buffer for name, buffer in found.items()}}

    def averaged(self) -> AbstractContextManager[None]:
        """Let the trained parameters be what is saved for a while: their averages, where the run keeps such."""
        return self.ema.applied() if self.ema is not None else nullcontext()

    def gathered(self, *more: Tensor) -> AbstractContextManager[object]:
        """Let every process have the trained parameters, and `more`, whole; ZeRO-3 partitions them."""
        if not self.is_deepspeed_enabled:
            return nullcontext()
        import deepspeed

        parameters = {id(each): each for each in (*self.trained().values(), *more)}
        return deepspeed.zero.GatheredParameters([each for each in parameters.values() if hasattr(each, "ds_id")])

    def save_trained(self, file: Path) -> None:
        """Write the trained tensors as they are now, whole or not at all. All ranks must call it."""
        with self.gathered():
            if self.args.should_save:
                with jsonl.writing(file) as partial:
                    save_file({name: each.detach().contiguous() for name, each in self._changing().items()}, partial)

    def load_trained(self, file: Path) -> None:
        """Take back what `save_trained` wrote, where the parameters are whole."""
        current = self._changing()
        with torch.no_grad():
            for name, tensor in load_file(file).items():
                current[name].copy_(tensor)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained tensors; under DeepSpeed the engine writes its own shards later."""
        directory = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            directory.mkdir(parents=True, exist_ok=True)
        if self.args.should_save and not self.is_deepspeed_enabled:
            tensors = {name: tensor.detach().contiguous() for name, tensor in self._changing().items()}
            save_file(tensors, directory / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved, current = load_file(Path(resume_from_checkpoint) / TRAINED), self._changing()
        if saved.keys() != current.keys():
            names = ", ".join(sorted(saved.keys() ^ current.keys())[:5])
            raise ValueError(f"{resume_from_checkpoint} holds other trained tensors than this run: {names}.")
        with torch.no_grad():
            for name, tensor in current.items():
                tensor.copy_(saved[name])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        engine: Any = self.model_wrapped
        scheduler: Any = self.lr_scheduler
        engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            with warnings.catch_warnings(action="ignore"):  # the scheduler belongs to torch, the optimizer to DeepSpeed
                torch.save(scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> tuple:
        """As the Trainer does, but DeepSpeed knows that frozen weights are not in its checkpoint."""
        if not (self.is_deepspeed_enabled and resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        elastic.load(self.model_wrapped, Path(resume_from_checkpoint))
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        scheduler, engine = cast(Any, self.lr_scheduler), cast(Any, self.model_wrapped)
        for group, rate in zip(engine.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        return prepared

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As the Trainer does; processes that the run did not have before get a seed of their own."""
        if checkpoint is not None:
            set_seed(hash((self.args.seed, self.state.global_step, distributed.rank())) % 2**32)
        super()._load_rng_state(checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer does, marked when it is complete; ValueError, and none, for weights that are not finite."""
        held = [(name, getattr(part, "ds_tensor", part).detach()) for name, part in self.trained().items()]
        broken = [name for name, part in held if not part.isfinite().all()]
        if broken := sorted({name for names in distributed.gather(broken) for name in names}):
            step, more = self.state.global_step, f"{len(broken)} trained tensors, such as {broken[0]},"
            raise ValueError(f"{more} are NaN or infinite after step {step}, which is not saved. {ADVICE}")
        directory = Path(str(self.args.output_dir))
        newest = directory / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(newest, ignore_errors=True)  # cut short, maybe by another number of processes
            jsonl.make_folder(newest)
        distributed.barrier()
        with errors_naming(newest):
            super()._save_checkpoint(model, trial)
        if self.ema is not None:
            self.ema.save(newest / EMA)
        distributed.barrier()
        if self.args.should_save:
            if (directory / BEST_FILE).is_file():
                shutil.copyfile(directory / BEST_FILE, newest / BEST_FILE)
            mark_complete(newest)  # on the disk before older ones go
            for old in checkpoints(directory)[: -self.data.config.keep_checkpoints]:
                (old / COMPLETE).unlink()
                shutil.rmtree(old)


class EvenBatchSampler(Sampler[list[int]]):
    """This process's batches of an epoch: a step holds the same samples on any number of processes.

    What is left at the end of an epoch is divided evenly; accelerate would repeat samples from the beginning, and then
    several processes learn something else than one. A process for which nothing is left gets one sample as padding,
    index -i-1, since all must make the same calls. `samples`: the indices of an epoch; `length` of a sample, where
    those of similar length are put together, over all micro-batches of a step (`accumulation`).
    """

    def __init__(
        self,
        items: int,
        size: int,
        seed: int,
        samples: Callable[[int], Tensor] | None = None,
        length: Callable[[int], float] | None = None,
        accumulation: int = 1,
    ) -> None:
        self.items, self.size, self.seed, self.epoch = items, size, seed, 0
        self.samples, self.length, self.accumulation = samples, length, accumulation
        self.rank, self.processes = distributed.rank(), distributed.world_size()

    def __len__(self) -> int:
        return math.ceil(self.items / (self.size * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.items, generator=generator)
        if self.samples is not None:
            order = self.samples(self.epoch)[order]
        together, whole = self.size * self.processes, [order]
        if self.length is not None:
            whole = grouped(order, together * self.accumulation, self.length, generator)
        for step in filter(None, (part.tolist() for window in whole for part in window.split(together))):
            yield np.array_split(step, self.processes)[self.rank].tolist() or [-step[0] - 1]


class _EpochCallback(TrainerCallback):
    """Sets epoch and step of data and module, logs wherever a checkpoint is written, and writes none at the end.

    A line at each checkpoint makes the log of a run that was killed equal to one that was not; after the last step the
    run's own checkpoint follows at once, and the Trainer would train on when it starts from a last step.
    """

    def __init__(self, trainer: RunTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take log_steps and save_steps from the settings: a resumed run has them from its checkpoint. Begin or
        continue the averages, and take back the best tensors that the checkpoint knows.
        """
        state.logging_steps, state.save_steps = args.logging_steps, args.save_steps
        trainer, directory = self.trainer, Path(str(args.output_dir))
        earlier = directory / f"checkpoint-{state.global_step}"
        if (decay := trainer.data.config.train.ema) is not None:
            trainer.ema = Ema(trainer.trained(), decay)
            if state.global_step:
                trainer.ema.load(earlier / EMA)
        if args.should_save:
            (directory / BEST_FILE).unlink(missing_ok=True)  # of steps that are made again
            if state.best_global_step:
                shutil.copyfile(earlier / BEST_FILE, directory / BEST_FILE)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Choose the epoch's order and draws."""
        self.trainer.batches.epoch = self.trainer.data.epoch = int(state.epoch or 0)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Choose the step's draws."""
        self.trainer.learner.begin_step(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Amend what the Trainer decided to do after this step."""
        beat(f"step {state.global_step}")
        if self.trainer.ema is not None:
            self.trainer.ema.update(state.global_step)
        last = state.global_step >= state.max_steps
        control.should_save = control.should_save and not last
        control.should_log = control.should_log or control.should_save or last

    def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell the watchdog of a batch of an accumulated step, one of validation, and a checkpoint."""
        beat(f"step {state.global_step}")

    on_prediction_step = on_save = on_substep_end
