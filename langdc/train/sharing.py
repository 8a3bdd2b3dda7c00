"""Sharing out the samples of a step among processes, also where an epoch leaves a rest.

accelerate gives each process every n-th batch, and where they do not come out even, repeats samples from the beginning
of the epoch: then several processes learn something else than one. Here what is left is divided evenly, and a process
for which none is left repeats one with weight zero, since all must make the same calls.
"""

from collections.abc import Callable, Iterator, Sized
from itertools import chain, pairwise
from typing import Any

import torch
from torch.utils.data import BatchSampler, Dataset

from langdc.backbones.chat import IGNORED

IDLE = "idle"
"""Key of a batch that must not count."""


class Rounds(BatchSampler):
    """Batches in rounds of one for each process; the last round has what is left. An index -i-1: sample i, for nothing.

    `batch_size` is None because it varies; `sampler` is the wrapped one's.
    """

    def __init__(self, batches: Any, processes: int) -> None:
        self.batches = batches
        self.processes = processes
        self.sampler = batches.sampler
        self.drop_last = False
        self.full = batches.batch_size
        self.batch_size = None  # pyright: ignore[reportAttributeAccessIssue, reportIncompatibleVariableOverride]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batches) // self.processes) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        held: list[list[int]] = []
        for batch in self.batches:
            held.append(batch)
            if len(held) == self.processes and len(batch) == self.full:
                yield from held
                held = []
        if held:
            yield from divided(list(chain(*held)), self.processes)


def divided(items: list[int], parts: int) -> list[list[int]]:
    """Items in order in so many parts that differ by one at most; where one would be empty, the first item, idle."""
    least, more = divmod(len(items), parts)
    ends = [number * least + min(number, more) for number in range(parts + 1)]
    found = [items[start:end] for start, end in pairwise(ends)]
    return [part or [-items[0] - 1] for part in found]


class Marked(Dataset):
    """A dataset that also knows idle samples: each item is a sample and whether it is idle."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        assert isinstance(self.dataset, Sized)
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, bool]:
        return self.dataset[index if index >= 0 else -index - 1], index < 0


def marked(collate: Callable[[list], dict]) -> Callable[[list[tuple[Any, bool]]], dict]:
    """A collate function for `Marked`: an idle batch says so, and has no target that would be counted."""

    def collated(items: list[tuple[Any, bool]]) -> dict:
        batch = collate([sample for sample, _ in items])
        if any(idle for _, idle in items):
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
            batch[IDLE] = True
        return batch

    return collated


def share_evenly(shard: Any) -> None:
    """Let accelerate's sampler of one process's batches work in `Rounds`."""
    shard.batch_sampler = Rounds(shard.batch_sampler, shard.num_processes)
    shard.batch_size = None
    shard.even_batches = False
