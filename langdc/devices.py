"""Where things run: the kind of device, how its processes talk to each other, and what it is asked.

CUDA cards (and ROCm, which answers to the same name) talk by nccl, Ascend NPUs through torch-npu by hccl, CPUs by gloo.
Everything that differs between them is here; nothing else names a kind. The NPU part is tested with a stand-in for
torch-npu and has not run on hardware.
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
class Kind:
    """A kind of device: torch's name for it, the backend of its collectives, and the package that brings it."""

    name: str
    backend: str
    package: str | None = None


CPU = Kind("cpu", "gloo")
ACCELERATORS = (Kind("cuda", "nccl"), Kind("npu", "hccl", "torch_npu"))
DEEPSPEED_CHOICE = "DS_ACCELERATOR"
_BLOCK_BYTES = {"cpu": 1 << 22, "accelerator": 1 << 27}
"""What a CPU keeps in its cache, and what keeps an accelerator busy."""


@cache
def kind() -> Kind:
    """The best kind that this machine has; asked once.

    Others that torch itself knows (Intel's, Apple's) are taken as torch describes them.
    """
    for candidate in ACCELERATORS:
        if _is_there(candidate):
            return candidate
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return CPU if other is None else Kind(other.type, dist.get_default_backend_for_device(other))


def _is_there(candidate: Kind) -> bool:
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
    """Choose for DeepSpeed, which else guesses, and warns at every start where there is only a CPU.

    The user's own choice stays. To be called before DeepSpeed, or transformers, which imports it, is imported.
    """
    if kind() in (CPU, *ACCELERATORS):
        os.environ.setdefault(DEEPSPEED_CHOICE, kind().name)


def at_once(each: float, where: torch.device) -> int:
    """How many things of `each` bytes to work on at once, at least one.

    What is made along the way then never has the size of a video, and costs no new memory from the system.
    """
    return max(1, int(_BLOCK_BYTES["cpu" if where.type == CPU.name else "accelerator"] // each))


def synchronize(where: torch.device | str | None = None) -> None:
    """Wait until a device (None: the kind that is here) has done what it was given; nothing to wait for on a CPU."""
    name = kind().name if where is None else torch.device(where).type
    if name not in (CPU.name, "meta"):
        _module(name).synchronize()


def reset_peak(where: torch.device) -> None:
    """Begin to watch for the most memory in use; a CPU does not count it."""
    reset = getattr(_module(where.type), "reset_peak_memory_stats", None) if where.type != CPU.name else None
    if reset is not None:
        reset(where)


def peak_bytes(where: torch.device) -> int | None:
    """The most memory in use since `reset_peak`; None for a device that does not count it."""
    read = getattr(_module(where.type), "max_memory_allocated", None) if where.type != CPU.name else None
    return int(read(where)) if read is not None else None


def _module(name: str) -> Any:
    return torch.get_device_module(name)
