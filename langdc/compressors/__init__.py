"""Token compressors, one file per method."""

from langdc.compressors import (
    chain,
    dpselect,
    dycoke,
    fastvid,
    holitom,
    langdc,
    ldpv2,
    ma_lmm,
    plain,
    pool,
    resampler,
    vidcom2,
    visionzip,
)
from langdc.compressors.base import compressors

build = compressors.build

__all__ = [
    "build",
    "chain",
    "compressors",
    "dpselect",
    "dycoke",
    "fastvid",
    "holitom",
    "langdc",
    "ldpv2",
    "ma_lmm",
    "plain",
    "pool",
    "resampler",
    "vidcom2",
    "visionzip",
]
