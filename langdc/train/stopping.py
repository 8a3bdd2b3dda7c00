"""Stopping a training on request: it finishes the step, writes a checkpoint and ends with a status of its own."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState

from langdc.log import get_logger

logger = get_logger(__name__)

EXIT_CODE = 75
"""How a run ends that was asked to stop and has saved: EX_TEMPFAIL, "try again"."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SECOND_SIGNAL_SECONDS = 2.0
"""Ctrl-C again, more than so many seconds after the first, ends at once; launchers repeat it sooner by themselves."""


class Stopped(Exception):
    """A run ended at a step because it was asked to, after it saved."""

    exit_code = EXIT_CODE


class GracefulShutdown(TrainerCallback):
    """While `listening`, one of SIGNALS to any process stops all of them after the same step, with a checkpoint.

    Must stand before callbacks that amend what is saved and logged.
    """

    def __init__(self) -> None:
        self.requested = False
        """As all processes agreed."""
        self._received, self._at = False, 0.0
        self._group: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals; only the main thread can, others leave things as they are. All ranks must call it."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            # on the CPU, so that asking does not wait for what an accelerator still computes
            self._group = dist.new_group(backend="gloo")
        main = threading.current_thread() is threading.main_thread()
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [number for number in SIGNALS if main and not (number == signal.SIGHUP and nohup)]
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._group is not None:
                dist.destroy_process_group(self._group)
                self._group = None

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Agree, and save."""
        if self.agree():
            logger.info("Asked to stop: saving after step %d.", state.global_step)
            control.should_save = control.should_training_stop = True

    def agree(self) -> bool:
        """Whether any process received a signal; all must call it, while listening."""
        received = torch.tensor(int(self._received))
        if self._group is not None:
            dist.all_reduce(received, dist.ReduceOp.MAX, group=self._group)
        self.requested = bool(received)
        return self.requested

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received and time.monotonic() - self._at > SECOND_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if not self._received:
            self._received, self._at = True, time.monotonic()
