"""Ends a process that hangs, and reports where: processes that wait for each other would otherwise wait forever.

Long work calls `beat` whenever a part of it is finished, as every `langdc.log.progress` does. For a process that waits
for others, what these finish counts, too; they note it in a shared folder.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from langdc import distributed
from langdc.distributed import rank, world_size

EXIT_CODE = 124
"""Exit status of a process that hung, that of `timeout`."""
SECONDS = 1800.0
INTERPRETER_TIMEOUT_SECONDS = 30.0
"""After this many seconds more a second timer, which needs no Python, ends a process whose interpreter is stuck."""
REPORT_SECONDS = 3.0
"""The other processes have this long to report before the launcher notices that this one ended."""
_current: "Watchdog | None" = None


def beat(what: str) -> None:
    """Note progress: a part of `what` was finished, or comes next."""
    if _current is not None:
        _current.beats, _current.what, _current.module = _current.beats + 1, what, ""


@contextmanager
def noting_modules(module: Any) -> Iterator[None]:
    """Note which submodules (without leaves) forward passes of a torch module enter, recomputed ones included."""

    def enter(name: str) -> None:
        if _current is not None:
            _current.module = name

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if name and next(part.children(), None) is not None:
                hooks.enter_context(part.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        yield


class Watchdog:
    """Within its context, ends this process when it finished nothing for `seconds` (None: never).

    Beforehand it writes rank, what was finished last, the module entered last and the Python stack of every thread to
    standard error. `folder`: where several processes note what they finish.
    """

    def __init__(self, seconds: float | None, folder: Path, leave: Callable[[int], Any] = os._exit) -> None:
        self.seconds, self.folder, self.leave = seconds or 0.0, folder, leave
        self.beats, self.what, self.module = 0, "the start", ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        global _current
        if self.seconds:
            _current = self
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        if self.seconds:
            _current = None
            self._done.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
            for note in self.folder.glob(f".alive-{'*' if rank() == 0 else rank()}"):  # also of an earlier start
                note.unlink(missing_ok=True)

    def _note(self, number: int) -> Path:
        return self.folder / f".alive-{number}"

    def _others(self) -> dict[int, str]:
        """What each other process noted last."""
        notes: dict[int, str] = {}
        for number in {*range(world_size())} - {rank()}:
            with suppress(OSError):
                notes[number] = self._note(number).read_text()
        return notes

    def _watch(self) -> None:
        last_state, since, noted = (), 0.0, 0.0
        while True:
            now, waits = time.monotonic(), bool(distributed.waits)
            state = (self.beats, distributed.passed, waits, self._others() if waits else None)
            if state != last_state:
                last_state, since = state, now
                limit = self.seconds + INTERPRETER_TIMEOUT_SECONDS
                faulthandler.dump_traceback_later(limit, exit=True, file=_error_output())
            elif now - since > self.seconds:
                os.write(_error_output(), self._report(waits).encode())
                faulthandler.dump_traceback(_error_output(), all_threads=True)
                self._done.wait(REPORT_SECONDS)
                self.leave(EXIT_CODE)
                return
            if world_size() > 1 and now - noted >= self.seconds / 8:
                noted = now
                with suppress(OSError):  # such as a full disk, which other writers report
                    self._note(rank()).write_text(f"{self.what} ({self.beats})")
            if self._done.wait(min(1.0, self.seconds / 8)):
                return

    def _report(self, waits: bool) -> str:
        others = "; ".join(f"process {number}, last seen at: {what}" for number, what in self._others().items())
        waiting = f" It waits for other processes ({others or 'none has noted anything'})." if waits else ""
        where = self.module or "none since (it waits for data, a file or another process)"
        return (
            f"\nWatchdog: process {rank()} of {world_size()} on {socket.gethostname()} finished nothing for "
            f"{self.seconds:g} seconds, after {self.what}.{waiting} Module entered last: {where}. It ends with status "
            f"{EXIT_CODE}; the same command resumes from what is complete. Stacks of its threads:\n"
        )


def _error_output() -> int:
    """The file descriptor of standard error, also where a test put something else in its place."""
    return sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
