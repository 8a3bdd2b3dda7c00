"""The processes of one evaluation: who asks about which videos, and where they wait for each other.

Started by `torchrun`, each process has a part file of its own; only the first one puts the parts together.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from langdc.log import is_first, rank, world_size
from langdc.training import processes

Item = TypeVar("Item")

__all__ = ["alone", "device", "first", "is_first", "rank", "share", "wait"]


def alone() -> bool:
    """Whether this is the only process."""
    return world_size() == 1


def device(named: str | None) -> torch.device:
    """Where this process runs its models: the accelerator of its local rank, unless a device is named."""
    return torch.device(named) if named is not None else processes.device()


def share(items: Sequence[Item]) -> list[Item]:
    """This process's part: every n-th item."""
    return list(items[rank() :: world_size()])


def wait() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def first(work: Callable[[], object]) -> None:
    """Let the first process do something while the others wait."""
    if is_first():
        work()
    wait()
