"""The card, the versions, and the ceilings that floors are taken from."""

import importlib.metadata
import platform
from collections.abc import Iterator

import torch

from benchmarks.gpu.measure import Place, Row, ceilings

PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "peft",
    "accelerate",
    "av",
    "liger-kernel",
    "flash-attn",
    "torchcodec",
)


def rows(place: Place) -> Iterator[Row]:
    """One table of names and values, and the ceilings as numbers."""
    if place.device == "cpu":
        found = {"card": platform.processor() or platform.machine()}
    else:
        about = torch.cuda.get_device_properties(0)
        found = {"card": about.name, "memory GiB": f"{about.total_memory / 2**30:.0f}", "CUDA": torch.version.cuda}
    found |= {"Python": platform.python_version(), "threads": torch.get_num_threads()}
    found |= {name: _version(name) for name in PACKAGES}
    for name, value in {**found, "imports s": f"{place.import_seconds:.1f}"}.items():
        yield {"table": "machine", "what": name, "value": value}
    flops, copied = ceilings(place)
    yield {"table": "ceilings", "type": str(place.dtype)[6:], "TFLOP/s": flops / 1e12, "GB/s": copied / 1e9}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
