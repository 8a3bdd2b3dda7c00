"""Logging for every part: one logger, quiet in all processes but the main one."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from langdc.distributed import is_main_process
from langdc.text import plain
from langdc.watchdog import beat

Item = TypeVar("Item")


class _Console(Console):
    """Shows text without control characters; raises BrokenPipeError when nobody reads the output any more."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)

    def on_broken_pipe(self) -> None:
        raise  # it is called while the error is handled


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


console = _Console(stderr=True)
LINE_SECONDS = 30.0
"""Seconds between two lines about progress where there is no terminal."""


def get_logger(name: str) -> logging.Logger:
    """The project's logger for a module: warnings and worse in every process, everything in the main one."""
    root = logging.getLogger("langdc")
    if not root.handlers:
        rich = RichHandler(console=console, show_path=False, show_time=sys.stderr.isatty(), markup=False)
        rich.setFormatter(_Formatter())
        root.addHandler(rich)
        root.setLevel(logging.INFO if is_main_process() else logging.WARNING)
        root.propagate = False
    return logging.getLogger(name if name.startswith("langdc") else f"langdc.{name}")


def screen(**options: Any) -> Console:
    """A console for standard output that shows text as it is: brackets are no markup and colons no emoji."""
    return _Console(**{"markup": False, "emoji": False, "highlight": False, "soft_wrap": True, **options})


@contextmanager
def progress(
    what: str, total: float | None = None, done: float = 0, folder: Path | None = None
) -> Iterator[Callable[..., None]]:
    """Yields `advance(more=1, now=False, description=None)`: call it when `more` is done; `now` writes a line at once.

    The main process shows a progress bar or, without a terminal, a line every LINE_SECONDS, also while one item takes
    long. `total` None: unknown; `done`: at the start; `folder`: its size in MB is counted, `total` is the growth.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown, finished, started = is_main_process() and total != 0, threading.Event(), time.monotonic()
    done = _megabytes(folder) if folder is not None else done
    goal = done + total if folder is not None and total is not None else total
    said, at = -1.0, started  # how much the last line said, and when

    def line() -> None:
        nonlocal said, at
        said, at = state.completed, time.monotonic()
        taken = _pace(state.completed - done, goal and goal - state.completed, time.monotonic() - started)
        of = "" if goal is None else f" of {goal:,.0f}"
        get_logger(__name__).info("%s: %s%s, %s", state.description, f"{state.completed:,.0f}", of, taken)

    def watch() -> None:
        while not finished.wait(min(LINE_SECONDS, 1.0)):
            if folder is not None:
                advance(max(0.0, _megabytes(folder) - state.completed))
            if shown and bar.disable and time.monotonic() >= at + LINE_SECONDS:
                line()

    def advance(more: float = 1, now: bool = False, description: str | None = None) -> None:
        bar.update(state.id, advance=more, description=description)
        if now and bar.disable and state.completed != said:
            line()
        if more:
            beat(state.description)

    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        bar.add_task(plain(what), total=goal, completed=int(done))
        state = bar.tasks[0]
        beat(what)
        threading.Thread(target=watch, name="progress", daemon=True).start()
        try:
            yield advance
        finally:
            finished.set()


def _megabytes(path: Path) -> float:
    with suppress(OSError):  # a file was renamed meanwhile
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()) / 1e6
    return 0.0


def track(items: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
    """The items, with `progress`."""
    with progress(what, total) as advance:
        for item in items:
            yield item
            advance()


def _pace(done: float, left: float | None, seconds: float) -> str:
    """The rate and the time left, as "3.2 a second, 0:12:30 left"; `left` None: unknown."""
    rate = done / max(seconds, 1e-9)
    if left is None:
        return f"{f'{rate:.3g} a second, ' * bool(done)}{timedelta(seconds=round(seconds))} so far"
    return f"{rate:.3g} a second, {timedelta(seconds=round(left / rate)) if rate else 'unknown time'} left"
