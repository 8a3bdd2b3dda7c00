"""Logging for every part: one logger, quiet in all processes but the main one."""

import logging
import sys
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from langdc.distributed import is_main_process

console = Console(stderr=True)


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
