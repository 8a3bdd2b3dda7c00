"""Token compressors, one file per method; every module of this folder is imported, so that its members are known."""

from importlib import import_module
from pkgutil import iter_modules

from langdc.compressors.base import compressors

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

build = compressors.build

__all__ = ["build", "compressors"]
