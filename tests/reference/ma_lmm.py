"""MA-LMM's memory bank merge by merge (arXiv 2404.05726, section 3.2)."""

from itertools import pairwise

from tests.reference.vectors import Vector, Video, cosine, mix

Slot = tuple[int, int, list[Vector]]
"""The frame it begins with, how many it stands for, and its vectors."""


def merged(frames: list[list[Vector]], count: int, soft: bool) -> list[Slot]:
    """The `count` slots left of a series of frames, whose vectors are merged together."""
    bank: list[Slot] = [(t, 1, vectors) for t, vectors in enumerate(frames)]
    while len(bank) > count:
        alike = []
        for (_, _, one), (_, _, other) in pairwise(bank):
            alike.append(sum(cosine(a, b) for a, b in zip(one, other, strict=True)) / len(one))
        i = alike.index(max(alike))
        (start, size, one), (_, more, other) = bank[i], bank[i + 1]
        part = size / (size + more) if soft else 0.0
        both = [mix(part, a, b) for a, b in zip(one, other, strict=True)]
        bank[i : i + 2] = [(start, size + more, both)]
    return bank


def ma_lmm(video: Video, count: int, per_frame: bool, soft: bool) -> tuple[list[int], list[Vector]]:
    """The flat places (of the frame each slot begins with) and the vectors left of a video, `count` for each place."""
    places = len(video[0])
    found = {}
    for group in [list(range(places))] if per_frame else [[p] for p in range(places)]:
        for start, _, vectors in merged([[frame[p] for p in group] for frame in video], count, soft):
            found.update({start * places + p: vector for p, vector in zip(group, vectors, strict=True)})
    source = sorted(found)
    return source, [found[s] for s in source]
