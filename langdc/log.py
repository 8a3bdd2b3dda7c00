"""Logging for every part: one logger, quiet on all ranks but the first."""

import logging
import os
import sys

from rich.console import Console
from rich.logging import RichHandler

console = Console(stderr=True)


def rank() -> int:
    """This process's number in a distributed run, 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes this distributed run has, 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def get_logger(name: str) -> logging.Logger:
    """The project's logger for a module: warnings and worse on every rank, everything on the first."""
    root = logging.getLogger("langdc")
    if not root.handlers:
        rich = RichHandler(console=console, show_path=False, show_time=sys.stderr.isatty(), markup=False)
        root.addHandler(rich)
        root.setLevel(logging.INFO if is_first() else logging.WARNING)
        root.propagate = False
    return logging.getLogger(name if name.startswith("langdc") else f"langdc.{name}")
