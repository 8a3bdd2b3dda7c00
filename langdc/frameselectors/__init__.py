"""Frame selectors, one file per method, all imported: before encoding, they choose the frames read for a question."""

from importlib import import_module
from pkgutil import iter_modules

from langdc.frameselectors.base import frameselectors

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

build = frameselectors.build

__all__ = ["build", "frameselectors"]
