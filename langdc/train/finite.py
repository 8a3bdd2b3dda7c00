"""Finds losses and gradients that are NaN or infinite, and the module and records that they come from.

The host reads the flag of a step while the device computes the next step; at a line of the log, and so before every
checkpoint, it reads it at once. So a run stops at most one step late. Until then the optimizer changes nothing;
DeepSpeed skips such steps by itself.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import is_dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from langdc import devices, distributed
from langdc.data.records import listed

ADVICE = (
    "The same command would come to this again. Correct these records or take them out, or lower train.learning_rate, "
    "lengthen train.warmup, or take precision: bfloat16 in place of float16, and begin anew with another output=..."
)


class FiniteCheck:
    """Checks that losses and gradients of the steps of a `RunTrainer` are finite."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._noted: list[tuple[int, float, Sequence[dict], Callable[[], list[float]]]] = []
        self._broken: Tensor | None = None

    def note(self, batches: Sequence[dict], losses: Sequence[Tensor], norm: Tensor | float | None) -> Tensor:
        """Note on the device whether any loss of a step, or its gradient norm, is not finite in any process.

        Returns 1 from the first such step on, else 0. A `norm` that is a number, as DeepSpeed gives it, is read at
        once. With a loss scale gradients may overflow, and `norm` is None. ValueError if the last step was not.
        """
        learner, loss = self.trainer.learner, torch.stack(list(losses)).sum()
        norm_tensor = norm if isinstance(norm, Tensor) else torch.full_like(loss, 0.0 if norm is None else norm)
        flags = (~torch.stack([loss, norm_tensor.to(loss)]).isfinite()).float()
        if distributed.world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        self._noted.append((learner.step, learner.progress, batches, devices.fetch(flags)))
        self.check(late=norm is None or isinstance(norm, Tensor) or math.isfinite(norm))
        self._broken = flags.amax() if self._broken is None else torch.maximum(self._broken, flags.amax())
        return self._broken

    def check(self, late: bool = False) -> None:
        """ValueError if a noted step was not finite; `late` leaves out the last one. All ranks must call it."""
        while len(self._noted) > late:
            step, progress, batches, read = self._noted.pop(0)
            loss, gradient = read()
            if loss or gradient:
                learner = self.trainer.learner
                learner.step, learner.progress = step, progress
                what = "The loss is" if loss else "The loss is finite, and its gradients are"
                raise ValueError(f"{what} NaN or infinite at step {step + 1}. {explain(self.trainer, batches)}")


def explain(trainer: Any, batches: Sequence[dict]) -> str:
    """The message for batches that are not finite: the first module whose output is not, the records, what to do.

    All ranks must call it, with equal numbers of batches.
    """
    own = [(_trace(trainer, batch), list(batch["batch"].where)) for batch in batches]
    traces = [trace for of_batch in zip(*distributed.gather(own), strict=True) for trace in of_batch]
    everything = [place for _, places in traces for place in places]
    what, where = next((trace for trace in traces if trace[0]), ("", everything))
    module = f"First module whose output was not finite: {what}" if what else "Computed again, all is finite"
    return f"{listed(f'{module}; records', where)}\n{ADVICE}"


def _trace(trainer: Any, batch: dict) -> str:
    """The first thing that is not finite when a batch is computed again, which changes nothing; "" if all is finite."""
    learner, noted = trainer.learner, list[tuple[str, Tensor]]()
    encoders = learner.model.backbone.encoders  # frozen ones may be out of the module tree
    modules = {f"backbone.encoders.{name}": part for name, part in encoders.named_modules() if name}
    modules |= {name.removeprefix("model."): part for name, part in learner.named_modules() if name}
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    backward = not any(hasattr(parameter, "ds_id") for parameter in parameters)  # which only the engine can gather

    def note(what: str, value: Any) -> None:
        noted.extend((what, tensor.isfinite().all()) for tensor in _floats(value))

    def before(name: str, module: Any, arguments: Any, keywords: Any) -> None:
        note(f"{name}, a weight of which is not finite", list(module.parameters(recurse=False)))
        note(f"{name}, whose input was not finite already", (arguments, keywords))

    def after(name: str, output: Any) -> None:
        note(name, output)
        for tensor in _floats(output) if backward else ():
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: note(f"none, but the gradient at the output of {name}", gradient))

    with ExitStack() as hooks, trainer.accelerator.autocast(), torch.set_grad_enabled(backward):
        for name, part in modules.items():
            enter = part.register_forward_pre_hook(lambda *call, name=name: before(name, *call), with_kwargs=True)
            hooks.enter_context(enter)
            hooks.enter_context(part.register_forward_hook(lambda *call, name=name: after(name, call[2])))
        loss = learner(**trainer._prepare_inputs(batch))["loss"]
        note("none, but the loss itself", loss)
        if loss.requires_grad:
            note("none, but a gradient", torch.autograd.grad(loss, parameters, allow_unused=True))
    return next((what for what, finite in noted if not finite), "")


def _floats(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a module's arguments or output, without masks, which may hold -inf."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and not value.is_meta:
            yield value
    elif isinstance(value, Mapping) or is_dataclass(value):
        items = value if isinstance(value, Mapping) else vars(value)
        for name, part in items.items():
            yield from _floats(part) if "mask" not in str(name) else ()
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _floats(part)
