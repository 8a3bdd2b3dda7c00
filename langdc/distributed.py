"""The processes of one run: rank and world size, threads, process group, broadcast and barrier.

A launcher (`deepspeed`, `torchrun`) sets RANK, WORLD_SIZE and LOCAL_RANK; without one there is a single process.
Nothing here imports torch before a function needs it.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

Value = TypeVar("Value")

TIMEOUT = timedelta(hours=12)
"""How long a collective waits: the first process may write captions or features for hours meanwhile."""
waits = passed = 0
"""How many waits for other processes are under way, and how many are over; the watchdog reads both."""
LAUNCHER_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
    "CROSS_RANK",
    "CROSS_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
)
"""What `deepspeed` and `torchrun` tell a process about its place in the run."""


def rank() -> int:
    """This process's number in a distributed run, 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes this distributed run has, 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints: number 0."""
    return rank() == 0


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process of its own, which no launcher counts among the run's."""
    return {name: value for name, value in environ.items() if name not in LAUNCHER_VARIABLES}


def _set_threads() -> int:
    """Share the cores among the processes of this machine, unless the user set OMP_NUM_THREADS; returns the number."""
    import torch

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
    import torch.distributed as dist

    from langdc import devices

    _set_threads()
    # a single process opens no port
    own: Any = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # pyright: ignore
    # DeepSpeed calls torch.distributed by names that torch has begun to rename: a warning per kind of call and process.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if deepspeed:
        _prepare_deepspeed(devices.has_accelerator())
    if "RANK" not in os.environ or dist.is_initialized():
        return
    devices.select(devices.device())
    dist.init_process_group(devices.kind().backend, timeout=TIMEOUT, **own)


def _prepare_deepspeed(accelerator: bool) -> None:
    if "RANK" not in os.environ:  # port 0: any that is free
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if not accelerator:
        import deepspeed.ops

        # Otherwise a C++ extension is compiled at the first start, for an operation that only inference uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextmanager
def waiting() -> Iterator[None]:
    """Count the enclosed wait for other processes in `waits`, and afterwards in `passed`."""
    global waits, passed
    waits += 1
    try:
        yield
    finally:
        waits, passed = waits - 1, passed + 1


def barrier() -> None:
    """Wait until every process of the run is here."""
    if _grouped():
        import torch.distributed as dist

        with waiting():
            dist.barrier()


def broadcast(value: Value) -> Value:
    """The main process's value, in every process."""
    if not _grouped():
        return value
    import torch.distributed as dist

    box = [value]
    with waiting():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks."""
    if not _grouped():
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world_size()
    with waiting():
        dist.all_gather_object(found, value)
    return found


def main_process_first(work: Callable[[], object]) -> None:
    """Let the main process do something while all others wait; its ValueError or OSError is raised in all of them."""
    failure: ValueError | OSError | None = None
    if is_main_process():
        try:
            work()
        except (ValueError, OSError) as error:
            failure = error
    # The message only: not every exception can be sent.
    kind, message = broadcast((OSError if isinstance(failure, OSError) else ValueError, failure and str(failure)))
    if message is not None:
        raise failure or kind(message)


def _grouped() -> bool:
    """Whether this process has others to talk to; without a launcher there is none, and torch need not be imported."""
    if "RANK" not in os.environ:
        return False
    import torch.distributed as dist

    return dist.is_initialized() and dist.get_world_size() > 1
