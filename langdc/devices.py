"""The kind of device a run uses, the backend of its collectives, and its memory and synchronization.

CUDA (and ROCm under the same name) uses nccl, Ascend NPUs hccl through torch-npu, CPUs gloo. No other module names a
kind. The NPU part is tested with a stand-in for torch-npu and has not run on hardware.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class _Kind(NamedTuple):
    """A kind of device: torch's name for it, and the backend of its collectives."""

    name: str
    backend: str


CPU = _Kind("cpu", "gloo")
ACCELERATORS = (_Kind("cuda", "nccl"), _Kind("npu", "hccl"))
_BLOCK_BYTES = {"cpu": 1 << 22, "accelerator": 1 << 27}
"""What a CPU keeps in its cache, and what keeps an accelerator busy."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What weights may be held in."""


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


def named(name: str | torch.device | None = "auto") -> torch.device:
    """The device of a name as torch writes it, such as "cuda:1"; "auto" and None: the accelerator of this process, or
    the CPU where there is none. ValueError for a name of none, and for a device that is not here.
    """
    best = device()
    if name is None or name == "auto":
        return best
    try:
        found = torch.device(name)
        count = 1 if found.type == CPU.name else torch.get_device_module(found).device_count()
    except (RuntimeError, AttributeError):  # no name of torch's, or of a kind that was not built in
        found, count = None, 0
    if found is None or (found.index or 0) >= count:
        here = "cpu" if best.type == CPU.name else f"cpu, {best.type}, {best.type}:0 and so on"
        raise ValueError(
            f"device {str(name)!r} is not on this machine. Allowed are auto (the accelerator if there is one), cpu, "
            f"cuda, cuda:1, npu and so on, as far as they are here: {here}."
        )
    return found


def dtype_named(name: str | torch.dtype, where: torch.device) -> torch.dtype | None:
    """The type of a name; "auto": bfloat16 on an accelerator, on a CPU None: as the checkpoint says. ValueError for
    what is no type of weights.
    """
    if name == "auto":
        return None if where.type == CPU.name else torch.bfloat16
    found = TYPES.get(str(name).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype is {str(name)!r}; allowed are auto, {', '.join(TYPES)}.")
    return found


def draws(where: torch.device | None) -> Any:
    """What has `get_rng_state` and `set_rng_state` of the draws on a device; None is a CPU."""
    return torch if where is None or where.type == CPU.name else torch.get_device_module(where)


@contextmanager
def making(where: torch.device | None, dtype: torch.dtype | None) -> Iterator[None]:
    """Weights that are made meanwhile, drawn or read, are made on a device and in a type; None changes nothing."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        with nullcontext() if where is None or where.type == CPU.name else where:
            yield
    finally:
        torch.set_default_dtype(before)


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


def fetch(values: Tensor) -> Callable[[], list]:
    """Begin to copy values to the host; returns a function that gives them and waits for no later work."""
    copy = values.to("cpu", non_blocking=True)
    if values.device.type == CPU.name:
        return copy.tolist
    event = torch.get_device_module(values.device).Event()
    event.record()
    return lambda: (event.synchronize(), copy.tolist())[1]


def reset_peak(where: torch.device) -> None:
    """Restart the measurement of `peak_bytes`."""
    reset = getattr(torch.get_device_module(where), "reset_peak_memory_stats", None)
    if reset is not None:
        reset(where)


def peak_bytes(where: torch.device) -> int | None:
    """The peak of allocated memory since `reset_peak`; None for a device that does not count it, such as a CPU."""
    allocated = getattr(torch.get_device_module(where), "max_memory_allocated", None)
    return None if allocated is None else int(allocated(where))
