"""Tells the watchdog what a training finishes: steps, parts of steps, checkpoints."""

from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerState

from langdc import watchdog


class StepBeats(TrainerCallback):
    """Notes steps, batches of accumulated steps and of validation, checkpoints, and the modules with parts of their own
    that the forward pass enters.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self._hooks = module, ExitStack()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Begin to note modules."""
        for name, part in self.module.named_modules():
            if name and next(part.children(), None) is not None:
                hook = part.register_forward_pre_hook(lambda *_, name=name: watchdog.enter(name))
                self._hooks.enter_context(hook)
        self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Note that something is finished."""
        watchdog.beat(f"step {state.global_step}")

    on_substep_end = on_prediction_step = on_save = on_step_end

    def close(self) -> None:
        """Note modules no more, also after an error."""
        self._hooks.close()
