"""The processes of one run: their threads, their group, and what all of them must agree on.

A launcher (`deepspeed`, `torchrun`) says who is who through RANK, WORLD_SIZE and LOCAL_RANK; plain python is alone.
"""

import os
import socket
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from langdc import devices
from langdc.log import is_first, rank, world_size

Value = TypeVar("Value")

# The first process may write captions or features for hours while the others wait at a barrier.
PATIENCE = timedelta(hours=12)


def has_accelerator() -> bool:
    """Whether there is something better than the CPU to train on."""
    return devices.has_accelerator()


def device() -> torch.device:
    """Where this process trains."""
    return devices.device(int(os.environ.get("LOCAL_RANK", 0)))


def set_threads() -> int:
    """Share the cores among the processes of this machine, unless the user set OMP_NUM_THREADS; returns the number."""
    local = next((int(os.environ[n]) for n in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if n in os.environ), world_size())
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdigit() and int(given) > 0 else max(1, _cores() // local)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # workers, and accelerate, which else counts on its own
    return threads


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(deepspeed: bool = False) -> None:
    """Set the threads and join the launcher's process group; DeepSpeed gets a group even for a single process."""
    set_threads()
    # DeepSpeed calls torch.distributed by names that torch has begun to rename: a warning per kind of call and process.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if deepspeed:
        _prepare_deepspeed()
    if "RANK" not in os.environ or dist.is_initialized():
        return
    devices.select(device())
    dist.init_process_group(devices.kind().backend, timeout=PATIENCE)


def _prepare_deepspeed() -> None:
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if not has_accelerator():
        import deepspeed.ops

        # Otherwise a C++ extension is compiled at the first start, for an operation that only inference uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def share(value: Value) -> Value:
    """Give every process the first one's value."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def first_alone(work: Callable[[], None]) -> None:
    """Let the first process do something while all others wait; its ValueError ends them all."""
    failure: ValueError | None = None
    if is_first():
        try:
            work()
        except ValueError as error:
            failure = error
    failure = share(failure)
    if failure is not None:
        raise failure


def wait() -> None:
    """Wait until every process of the run is here."""
    if dist.is_initialized():
        dist.barrier()


def name() -> str:
    """How messages call this process: nothing for the first or only one."""
    return "" if is_first() else f"[process {rank()}] "
