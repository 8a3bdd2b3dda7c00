"""The kind of device a run uses, the backend of its collectives, and its memory and synchronization.

CUDA (and ROCm under the same name) uses nccl, Ascend NPUs hccl through torch-npu, CPUs gloo. No other module names a
kind. The NPU part is tested with a stand-in for torch-npu and has not run on hardware.
"""

import importlib
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class _Kind:
    """A kind of device: torch's name for it, the backend of its collectives, and the package that brings it."""

    name: str
    backend: str
    package: str | None = None


CPU = _Kind("cpu", "gloo")
ACCELERATORS = (_Kind("cuda", "nccl"), _Kind("npu", "hccl", "torch_npu"))
DEEPSPEED_CHOICE = "DS_ACCELERATOR"
_BLOCK_BYTES = {"cpu": 1 << 22, "accelerator": 1 << 27}
"""What a CPU keeps in its cache, and what keeps an accelerator busy."""


@cache
def kind() -> _Kind:
    """The best kind that this machine has; others that torch knows (Intel's, Apple's) as torch describes them."""
    for candidate in ACCELERATORS:
        if _is_there(candidate):
            return candidate
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return CPU if other is None else _Kind(other.type, dist.get_default_backend_for_device(other))


def _is_there(candidate: _Kind) -> bool:
    if candidate.package is not None:
        if importlib.util.find_spec(candidate.package) is None:
            return False
        importlib.import_module(candidate.package)  # makes torch.<name>
    module = getattr(torch, candidate.name, None)
    return module is not None and bool(module.is_available())


def has_accelerator() -> bool:
    """Whether there is something better than the CPU."""
    return kind() != CPU


def device(local_rank: int | None = None) -> torch.device:
    """The device of the process with this number on its machine; None: of this process."""
    number = int(os.environ.get("LOCAL_RANK", "0")) if local_rank is None else local_rank
    return torch.device("cpu") if not has_accelerator() else torch.device(kind().name, number)


def select(where: torch.device) -> None:
    """Make a device the one that new tensors of its kind go to; nothing to choose on a CPU."""
    if where.type != CPU.name and where.index is not None:
        _module(where.type).set_device(where.index)


def tell_deepspeed() -> None:
    """Set DeepSpeed's accelerator, unless the user did; without it a CPU gives a warning at every start.

    To be called before DeepSpeed, or transformers, which imports it, is imported.
    """
    if kind() in (CPU, *ACCELERATORS):
        os.environ.setdefault(DEEPSPEED_CHOICE, kind().name)


def at_once(each: float, where: torch.device) -> int:
    """How many items of `each` bytes to process in one step, at least 1, so that intermediate results stay small."""
    return max(1, int(_BLOCK_BYTES["cpu" if where.type == CPU.name else "accelerator"] // each))


def synchronize(where: torch.device | str | None = None) -> None:
    """Wait until a device (None: the kind that is here) has done what it was given; nothing to wait for on a CPU."""
    name = kind().name if where is None else torch.device(where).type
    if name not in (CPU.name, "meta"):
        _module(name).synchronize()


def reset_peak(where: torch.device) -> None:
    """Restart the measurement of `peak_bytes`."""
    if where.type != CPU.name and hasattr(_module(where.type), "reset_peak_memory_stats"):
        _module(where.type).reset_peak_memory_stats(where)


def peak_bytes(where: torch.device) -> int | None:
    """The peak of allocated memory since `reset_peak`; None for a device that does not count it, such as a CPU."""
    if where.type != CPU.name and hasattr(_module(where.type), "max_memory_allocated"):
        return int(_module(where.type).max_memory_allocated(where))
    return None


def _module(name: str) -> Any:
    return torch.get_device_module(name)
