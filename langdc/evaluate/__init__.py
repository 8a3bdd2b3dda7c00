"""Evaluation: `main(argv)` is the command `langdc eval`, `report(argv)` the command `langdc report`."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("main", "report"):
        return getattr(import_module("langdc.evaluate.command"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
