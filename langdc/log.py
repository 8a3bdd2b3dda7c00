"""Logging for every part: one logger, quiet in all processes but the main one."""

import logging
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from langdc.distributed import is_main_process
from langdc.watchdog import beat

Item = TypeVar("Item")

console = Console(stderr=True)
LINE_SECONDS = 30.0
"""Seconds between two lines about progress where there is no terminal."""


def get_logger(name: str) -> logging.Logger:
    """The project's logger for a module: warnings and worse in every process, everything in the main one."""
    root = logging.getLogger("langdc")
    if not root.handlers:
        rich = RichHandler(console=console, show_path=False, show_time=sys.stderr.isatty(), markup=False)
        root.addHandler(rich)
        root.setLevel(logging.INFO if is_main_process() else logging.WARNING)
        root.propagate = False
    return logging.getLogger(name if name.startswith("langdc") else f"langdc.{name}")


def screen(**options: Any) -> Console:
    """A console for standard output that shows text as it is: brackets are no markup and colons no emoji."""
    return Console(**{"markup": False, "emoji": False, "highlight": False, "soft_wrap": True, **options})


@contextmanager
def progress(
    what: str, total: float | None = None, done: float = 0, measure: Callable[[], float] | None = None
) -> Iterator[Callable[..., None]]:
    """Gives a function that is called as work goes on: (how much more is done = 1, total = ..., description = ...).

    In the main process there is a progress bar or, without a terminal, a line every LINE_SECONDS, also while one item
    takes long. `total` None: it is not known; `done`: what was done before; `measure` says what is done by now, where
    nobody calls. What is done is a `beat` for the watchdog.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown, over, started = is_main_process() and total != 0, threading.Event(), time.monotonic()
    quiet = not (shown and console.is_terminal)

    def lines() -> None:
        while not over.wait(LINE_SECONDS if quiet else 1.0):
            if measure is not None and (more := measure() - state.completed) > 0:
                advance(more)
            if not (shown and quiet):
                continue
            goal, now, seconds = state.total, state.completed, time.monotonic() - started
            taken = pace(now - done, None if goal is None else goal - now, seconds)
            of = "" if goal is None else f" of {goal:,.0f}"
            get_logger(__name__).info("%s: %s%s, %s", state.description, f"{now:,.0f}", of, taken)

    with Progress(*columns, console=console, disable=quiet) as bar:
        bar.add_task(what, total=total, completed=int(done))
        state = bar.tasks[0]

        def advance(more: float = 1, **changes: Any) -> None:
            bar.update(state.id, advance=more, **changes)
            if more:
                beat(state.description)

        if measure is not None or (shown and quiet):
            threading.Thread(target=lines, name="progress", daemon=True).start()
        try:
            yield advance
        finally:
            over.set()


def growing(what: str, folder: Path, size: float | None) -> AbstractContextManager[Any]:
    """The `progress` of a folder that something else fills up to about `size` bytes, in MB."""
    before = size_of(folder) / 1e6
    total = None if size is None else before + size / 1e6
    return progress(f"{what}, MB", total, before, lambda: size_of(folder) / 1e6)


def size_of(path: Path) -> float:
    """The bytes of a file, or of all files in a folder, links apart."""
    found = 0
    for file in [path, *path.rglob("*")]:
        with suppress(OSError):  # renamed meanwhile
            found += file.lstat().st_size if stat.S_ISREG(file.lstat().st_mode) else 0
    return found


def track(items: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
    """The items, with `progress`."""
    with progress(what, total) as advance:
        for item in items:
            yield item
            advance()


def pace(done: float, left: float | None, seconds: float) -> str:
    """The rate of what was done in `seconds`, and the time left, as "3.2 a second, 0:12:30 left"; None: not known."""
    rate = done / max(seconds, 1e-9)
    if left is None:
        return f"{f'{rate:.3g} a second, ' * bool(done)}{timedelta(seconds=round(seconds))} so far"
    return f"{rate:.3g} a second, {timedelta(seconds=round(left / rate)) if rate else 'unknown time'} left"
