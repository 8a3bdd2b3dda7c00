"""A loss or gradient that is NaN or infinite: noticed without a wait in each step, and traced to a module and records.

The host reads what was noted of a step while the device computes the next one, and of a step with a line of the log,
as every one with a checkpoint has, at once. So a run stops one step late at most. Until then the optimizer changes
nothing; DeepSpeed's skips such steps by itself.
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
    """Looks at the steps of a `RunTrainer`."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._noted: list[tuple[int, float, Sequence[dict], Callable[[], list[float]]]] = []
        self._found: Tensor | None = None

    def note(self, batches: Sequence[dict], losses: Sequence[Tensor], norm: Tensor | float | None) -> Tensor:
        """Note on the device whether a loss of a step's batches, or the norm of the gradients, is not finite anywhere.

        Returns 1 from the first such step on, else 0. A `norm` that is a number, as DeepSpeed gives it, is read at
        once. With a loss scale gradients may overflow, and `norm` is None. ValueError for the step before.
        """
        learner, loss = self.trainer.learner, torch.stack(list(losses)).sum()
        known = norm if isinstance(norm, Tensor) else torch.full_like(loss, 0.0 if norm is None else norm)
        flags = (~torch.stack([loss, known.to(loss)]).isfinite()).float()
        if distributed.world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        self._noted.append((learner.step, learner.progress, batches, devices.fetch(flags)))
        self.check(late=norm is None or isinstance(norm, Tensor) or math.isfinite(norm))
        self._found = flags.amax() if self._found is None else torch.maximum(self._found, flags.amax())
        return self._found

    def check(self, late: bool = False) -> None:
        """ValueError for a step that is not finite; `late`: not for the last one. All ranks must call it."""
        while len(self._noted) > late:
            step, progress, batches, read = self._noted.pop(0)
            loss, gradient = read()
            if loss or gradient:
                learner = self.trainer.learner
                learner.step, learner.progress = step, progress
                what = "The loss is" if loss else "The loss is finite, and its gradients are"
                raise ValueError(f"{what} NaN or infinite at step {step + 1}. {explain(self.trainer, batches)}")


def explain(trainer: Any, batches: Sequence[dict]) -> str:
    """The first module whose output is not finite when batches are computed again, their records, and what to do.

    All ranks must call it, with equal numbers of batches.
    """
    found = [(_trace(trainer, batch), list(batch["batch"].where)) for batch in batches]
    each = [one for of_all in zip(*distributed.gather(found), strict=True) for one in of_all]
    what, where = next((one for one in each if one[0]), ("", [place for _, places in each for place in places]))
    module = f"First module whose output was not finite: {what}" if what else "Computed again, all is finite"
    return f"{listed(f'{module}; records', where)}\n{ADVICE}"


def _trace(trainer: Any, batch: dict) -> str:
    """What is not finite first when a batch is learned again, without a change to anything; "" if all is finite."""
    learner, noted = trainer.learner, list[tuple[str, Tensor]]()
    encoders = learner.model.backbone.encoders  # frozen ones may be out of the module tree
    modules = {f"backbone.encoders.{name}": part for name, part in encoders.named_modules() if name}
    modules |= {name.removeprefix("model."): part for name, part in learner.named_modules() if name}
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    backward = not any(hasattr(parameter, "ds_id") for parameter in parameters)  # which only the engine can gather

    def note(what: str, value: Any) -> None:
        noted.extend((what, one.isfinite().all()) for one in _floats(value))

    def before(name: str, module: Any, given: Any, named: Any) -> None:
        note(f"{name}, a weight of which is not finite", list(module.parameters(recurse=False)))
        note(f"{name}, whose input was not finite already", (given, named))

    def after(name: str, output: Any) -> None:
        note(name, output)
        for one in _floats(output) if backward else ():
            if one.requires_grad:
                one.register_hook(lambda gradient: note(f"none, but the gradient at the output of {name}", gradient))

    with ExitStack() as hooks, trainer.accelerator.autocast(), torch.set_grad_enabled(backward):
        for name, part in modules.items():
            enter = part.register_forward_pre_hook(lambda *given, name=name: before(name, *given), with_kwargs=True)
            hooks.enter_context(enter)
            hooks.enter_context(part.register_forward_hook(lambda *given, name=name: after(name, given[2])))
        loss = learner(**trainer._prepare_inputs(batch))["loss"]
        note("none, but the loss itself", loss)
        if loss.requires_grad:
            note("none, but a gradient", torch.autograd.grad(loss, parameters, allow_unused=True))
    return next((what for what, finite in noted if not finite), "")


def _floats(value: Any) -> Iterator[Tensor]:
    """The tensors of floating-point numbers in what a module takes or gives; masks may hold -inf."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and not value.is_meta:
            yield value
    elif isinstance(value, Mapping) or is_dataclass(value):
        items = value if isinstance(value, Mapping) else vars(value)
        yield from (one for name, part in items.items() if "mask" not in str(name) for one in _floats(part))
    elif isinstance(value, list | tuple):
        yield from (one for part in value for one in _floats(part))
