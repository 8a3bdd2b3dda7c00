"""Logging for every part: one logger, quiet in all processes but the main one."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from langdc.distributed import is_main_process
from langdc.text import plain

Item = TypeVar("Item")


class _Console(Console):
    """Shows texts without control characters; a reader of the output that has ended is an error like any other."""

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


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items; in the main process with a progress bar or, without a terminal, a line every LINE_SECONDS."""
    named = TextColumn("{task.description}", markup=False)
    columns = (named, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = is_main_process() and total > 0 and console.is_terminal
    started = last = time.monotonic()
    with Progress(*columns, console=console, disable=not shown) as bar:
        for done, item in enumerate(bar.track(items, total, description=what), 1):
            yield item
            if not shown and (now := time.monotonic()) - last >= LINE_SECONDS:
                last = now
                taken = pace(done, total - done, now - started)
                get_logger(__name__).info("%s: %d of %d, %s", what, done, total, taken)


def pace(done: int, left: int, seconds: float) -> str:
    """The rate of what was done in `seconds`, and the time left, as "3.2 a second, 0:12:30 left"."""
    rate = done / max(seconds, 1e-9)
    return f"{rate:.3g} a second, {timedelta(seconds=round(left / rate)) if rate else 'unknown time'} left"
