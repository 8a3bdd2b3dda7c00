"""Layer compressors, one file per method, all imported: they drop rows between the language model's layers."""

from importlib import import_module
from pkgutil import iter_modules

from langdc.layercompressors.base import layercompressors

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

build = layercompressors.build

__all__ = ["build", "layercompressors"]
