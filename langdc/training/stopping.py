"""Stopping a training on request: it finishes the step, writes a checkpoint and ends with a status of its own."""

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from langdc.distributed import is_main_process
from langdc.log import get_logger

logger = get_logger(__name__)

EXIT_CODE = 75
"""How a run ends that was asked to stop and has saved: EX_TEMPFAIL, "try again"."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
IMPATIENT = 2.0
"""Ctrl-C again, so many seconds after the first time, ends at once; launchers repeat it sooner by themselves."""


class Stopped(Exception):
    """A run ended at a step because it was asked to, after it saved."""


class Stop(TrainerCallback):
    """Between `listen` and `close`, SIGTERM and SIGINT to any process stop all of them after the same step.

    Must stand before callbacks that amend what is saved and logged.
    """

    def __init__(self) -> None:
        self.asked = False
        """As all processes agreed."""
        self._heard = False
        self._at = 0.0
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def listen(self) -> None:
        """Take the signals; only the main thread can, others leave things as they are. All ranks must call it."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            # on the CPU, so that asking does not wait for what an accelerator still computes
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Agree, and save."""
        if self.agree():
            if is_main_process():
                logger.info("Asked to stop: saving after step %d.", state.global_step)
            control.should_save = True
            control.should_training_stop = True

    def agree(self) -> bool:
        """Whether any process was asked; all must call it, while listening."""
        heard = torch.tensor(int(self._heard))
        if self._group is not None:
            dist.all_reduce(heard, dist.ReduceOp.MAX, group=self._group)
        self.asked = bool(heard)
        return self.asked

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._heard and time.monotonic() - self._at > IMPATIENT:
            raise KeyboardInterrupt
        if not self._heard:
            self._heard, self._at = True, time.monotonic()
