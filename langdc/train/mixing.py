"""Which samples an epoch has, of several sets of records, and in which order; decided by seed and epoch alone."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from langdc.config import DataConfig

WINDOW_STEPS = 50
"""Samples are grouped by length within a window of this many steps."""


def capped(count: int, cap: int | None, seed: int, number: int) -> np.ndarray:
    """Which of `count` records of the set with this number are used, ascending."""
    if cap is None or cap >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, number]).permutation(count)[:cap])


def epoch_counts(sets: Sequence[DataConfig], sizes: Sequence[int]) -> list[int]:
    """How many samples of each set an epoch has; ValueError for a weight on a set without any."""
    counts = [round(size * (entry.repeat or 1.0)) for entry, size in zip(sets, sizes, strict=True)]
    weighed = [number for number, entry in enumerate(sets) if entry.weight is not None]
    if empty := [sets[number].path for number in weighed if not sizes[number]]:
        raise ValueError(
            f"{empty[0]} has a weight, and none of its records can be used for this objective. Leave it out."
        )
    weights = np.cumsum([sets[number].weight or 0.0 for number in weighed])
    if weighed:
        # differences of rounded sums, so that together they keep their number
        ends = np.rint(weights / weights[-1] * sum(sizes[number] for number in weighed)).astype(int)
        for number, count in zip(weighed, np.diff(ends, prepend=0).tolist(), strict=True):
            counts[number] = count
    if not sum(counts):
        raise ValueError(
            f"train.data: an epoch of {sum(sizes)} records, repeated so rarely, has no sample. Raise repeat."
        )
    return counts


def epoch_samples(sizes: Sequence[int], counts: Sequence[int], seed: int, epoch: int) -> Tensor:
    """Sample indices of an epoch, set by set: each sample `count // size` times, the rest drawn by the seed."""
    found, first = [], 0
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        whole, rest = divmod(count, max(size, 1))
        drawn = np.random.default_rng([seed, epoch, number]).permutation(size)[:rest]
        found += [first + part for part in (*[np.arange(size)] * whole, np.sort(drawn))]
        first += size
    return torch.from_numpy(np.concatenate(found))


def grouped(order: Tensor, step: int, length: Callable[[int], float], generator: torch.Generator) -> Iterator[Tensor]:
    """An epoch's order with samples of similar length in a step, and the steps shuffled; the smaller last one stays."""
    for window in order.split(step * WINDOW_STEPS):
        lengths = torch.tensor([length(index) for index in window.tolist()])
        steps = window[lengths.argsort(descending=True, stable=True)].split(step)
        whole = len(window) // step
        yield torch.cat([*(steps[n] for n in torch.randperm(whole, generator=generator).tolist()), *steps[whole:]])
