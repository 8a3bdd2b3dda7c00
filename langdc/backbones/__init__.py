"""Large models and their habits: how each encodes, prompts and splices."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from langdc import compat
from langdc.backbones.base import backbone_of, backbones

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["backbone_of", "backbones"]


def __getattr__(name: str) -> Any:
    return compat.member(__name__, name)
