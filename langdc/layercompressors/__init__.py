"""Layer compressors, one file per method: they drop video rows between the layers of the language model."""

from langdc.layercompressors import dart, fastv, holitom, pyramiddrop, sparsevlm
from langdc.layercompressors.base import layercompressors

build = layercompressors.build

__all__ = ["build", "dart", "fastv", "holitom", "layercompressors", "pyramiddrop", "sparsevlm"]
