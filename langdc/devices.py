"""The kind of device a run uses, the backend of its collectives, and its memory and synchronization.

CUDA (and ROCm under the same name) uses nccl, Ascend NPUs hccl through torch-npu, CPUs gloo. No other module names a
kind. The NPU part is tested with a stand-in for torch-npu and has not run on hardware.
"""

import importlib
import importlib.util
import os
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist


class _Kind(NamedTuple):
    """A kind of device: torch's name for it, and the backend of its collectives."""

    name: str
    backend: str


CPU = _Kind("cpu", "gloo")
ACCELERATORS = (_Kind("cuda", "nccl"), _Kind("npu", "hccl"))
_BLOCK_BYTES = {"cpu": 1 << 22, "accelerator": 1 << 27}
"""What a CPU keeps in its cache, and what keeps an accelerator busy."""


@cache
def kind() -> _Kind:
    """The best kind that this machine has; others that torch knows (Intel's, Apple's) as torch describes them."""
    for candidate in ACCELERATORS:
        if candidate.name == "npu" and importlib.util.find_spec("torch_npu") is not None:
            importlib.import_module("torch_npu")  # makes torch.npu
        module = getattr(torch, candidate.name, None)
        if module is not None and module.is_available():
            return candidate
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return CPU if other is None else _Kind(other.type, dist.get_default_backend_for_device(other))


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
        torch.get_device_module(where).set_device(where.index)


def tell_deepspeed() -> None:
    """Set DeepSpeed's accelerator, unless the user did; without it a CPU gives a warning at every start.

    To be called before DeepSpeed, or transformers, which imports it, is imported.
    """
    if kind() in (CPU, *ACCELERATORS):
        os.environ.setdefault("DS_ACCELERATOR", kind().name)


def at_once(each: float, where: torch.device) -> int:
    """How many items of `each` bytes to process in one step, at least 1, so that intermediate results stay small."""
    return max(1, int(_BLOCK_BYTES["cpu" if where.type == CPU.name else "accelerator"] // each))


def synchronize(where: torch.device | str | None = None) -> None:
    """Wait until a device (None: the kind that is here) has done what it was given; nothing to wait for on a CPU."""
    name = kind().name if where is None else torch.device(where).type
    if name not in (CPU.name, "meta"):
        torch.get_device_module(name).synchronize()


def reset_peak(where: torch.device) -> None:
    """Restart the measurement of `peak_bytes`."""
    reset = getattr(torch.get_device_module(where), "reset_peak_memory_stats", None)
    if reset is not None:
        reset(where)


def peak_bytes(where: torch.device) -> int | None:
    """The peak of allocated memory since `reset_peak`; None for a device that does not count it, such as a CPU."""
    allocated = getattr(torch.get_device_module(where), "max_memory_allocated", None)
    return None if allocated is None else int(allocated(where))
