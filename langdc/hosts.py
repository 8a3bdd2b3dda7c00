"""The name of `langdc.backbones` in version 0.1."""

from typing import Any

from langdc import backbones, compat

compat.alias("langdc.hosts", "langdc.backbones")
__path__: list[str] = []  # so that "import langdc.hosts.base" finds the modules that are loaded


def __getattr__(name: str) -> Any:
    return getattr(backbones, name)
