"""Reports where a training hangs, and ends it: ranks that wait for each other would wait without end.

Each process watches itself, so all report: the one that hangs names where, the others what they reached before they
began to wait.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerState

from langdc.distributed import rank, world_size

EXIT_CODE = 124
"""Exit status of a process that hung, that of `timeout`."""
INTERPRETER_TIMEOUT_SECONDS = 30.0
"""After this many seconds more a second timer, which needs no Python, ends a process whose interpreter is stuck."""
REPORT_SECONDS = 3.0
"""The other processes have this long to report before the launcher notices that this one ended."""


class Watchdog(TrainerCallback):
    """Ends this process when no step, part of a step or checkpoint was finished for `seconds`.

    Beforehand it writes rank, step, the module entered last and the Python stack of every thread to standard error.
    Modules that have parts of their own are noted as the forward pass (also a recomputed one) enters them.
    """

    def __init__(self, module: nn.Module, seconds: float, leave: Callable[[int], Any] = os._exit) -> None:
        self.module, self.seconds, self.leave = module, seconds, leave
        self._step, self._inside, self._last = 0, "", time.monotonic()
        self._done = threading.Event()
        self._cleanup = ExitStack()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Begin to watch."""
        for name, part in self.module.named_modules():
            if name and next(part.children(), None) is not None:
                entered = part.register_forward_pre_hook(lambda *_, name=name: setattr(self, "_inside", name))
                self._cleanup.enter_context(entered)
        self.on_step_end(args, state, control)
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        self._cleanup.callback(thread.join)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Note that a step, a batch of an accumulated step or of validation, or a checkpoint is finished."""
        self._step, self._inside, self._last = state.global_step, "", time.monotonic()
        faulthandler.dump_traceback_later(self.seconds + INTERPRETER_TIMEOUT_SECONDS, exit=True, file=_error_output())

    on_substep_end = on_prediction_step = on_save = on_step_end

    def close(self) -> None:
        """Watch no more, also after an error."""
        self._done.set()
        faulthandler.cancel_dump_traceback_later()
        self._cleanup.close()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                os.write(_error_output(), self._report().encode())
                faulthandler.dump_traceback(_error_output(), all_threads=True)
                self._done.wait(REPORT_SECONDS)
                self.leave(EXIT_CODE)
                return

    def _report(self) -> str:
        where = self._inside or "none since (it waits for data or another process, or keeps a checkpoint)"
        return (
            f"\nWatchdog: process {rank()} of {world_size()} on {socket.gethostname()} finished no step for "
            f"{self.seconds:g} seconds, after step {self._step}. Module entered last: {where}. It ends with status "
            f"{EXIT_CODE}; the same command goes on from the last checkpoint. Where its threads are:\n"
        )


def _error_output() -> int:
    """The file descriptor of standard error, also where a test put something else in its place."""
    return sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
