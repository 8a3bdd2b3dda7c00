"""Token compressors, one file per method."""

from langdc.compressors import langdc, pool
from langdc.compressors.base import compressors

build = compressors.build

__all__ = ["build", "compressors", "langdc", "pool"]
