"""KV compressors, one file per method; scorers and allocators are pieces that they share."""

from langdc.kvcompressors import dycoke, flexreduc, pivotkv, random, snapkv, streaming
from langdc.kvcompressors.base import kvcompressors

build = kvcompressors.build

__all__ = ["build", "dycoke", "flexreduc", "kvcompressors", "pivotkv", "random", "snapkv", "streaming"]
