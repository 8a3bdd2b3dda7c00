"""What the slow versions of compressors share: vectors as lists of floats, and picking the best of a list."""

import math
from collections.abc import Callable

import torch

Vector = list[float]
Video = list[list[Vector]]
"""Frames of places of vectors."""


def dot(one: Vector, other: Vector) -> float:
    """The inner product."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def length(one: Vector) -> float:
    """The Euclidean length."""
    return math.sqrt(dot(one, one))


def cosine(one: Vector, other: Vector) -> float:
    """The cosine of two vectors."""
    return dot(one, other) / (length(one) * length(other))


def distance(one: Vector, other: Vector) -> float:
    """The Euclidean distance."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)))


def mean(several: list[Vector]) -> Vector:
    """The mean vector."""
    return [sum(column) / len(several) for column in zip(*several, strict=True)]


def mix(part: float, one: Vector, other: Vector) -> Vector:
    """`part` of one, the rest of the other."""
    return [part * a + (1 - part) * b for a, b in zip(one, other, strict=True)]


def unit(one: Vector) -> Vector:
    """The vector of length one in the same direction."""
    return [a / length(one) for a in one]


def best(score: dict[int, float], count: int) -> list[int]:
    """The `count` keys of highest score, ascending; of equals the earlier."""
    return sorted(sorted(score, key=lambda key: (-score[key], key))[:count])


Pick = Callable[[dict[int, float], int], list[int]]


def best_by_topk(score: dict[int, float], count: int) -> list[int]:
    """The same, but of equals those that torch.topk takes, as released code does."""
    keys = list(score)
    return sorted(keys[i] for i in torch.tensor([score[key] for key in keys]).topk(count).indices)


def runs(frames: list[int], parted: set[int]) -> list[list[int]]:
    """Frames cut before each one in `parted`."""
    found: list[list[int]] = []
    for t in frames:
        if not found or t in parted:
            found.append([])
        found[-1].append(t)
    return found


def evenly(total: int, rows: int, most: int) -> list[int]:
    """How many of `total` things each row gets, where the i-th row ends at the i-th part of the whole."""
    total = min(total, rows * most)
    ends = [i * (total % rows) // rows for i in range(rows + 1)]
    return [total // rows + ends[i + 1] - ends[i] for i in range(rows)]


def by_remainder(wanted: list[float], total: int, most: list[int]) -> list[int]:
    """Whole numbers near `wanted` that add up to `total`, none above `most`: the method of the largest remainder."""
    given = [min(math.floor(share), limit) for share, limit in zip(wanted, most, strict=True)]
    order = sorted(range(len(wanted)), key=lambda i: given[i] - wanted[i])
    while sum(given) < total:
        for i in order:
            if given[i] < most[i] and sum(given) < total:
                given[i] += 1
    return given
