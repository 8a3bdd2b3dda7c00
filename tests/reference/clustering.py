"""Density peaks among nearest neighbours, and merging into them, token by token."""

import math

from tests.reference.vectors import Pick, Vector, best, distance, mean, mix


def density_peaks(tokens: list[Vector], among: list[int], count: int, neighbours: int, pick: Pick = best) -> list[int]:
    """The `count` of `among` that are dense (close to their nearest, themselves counted) and far from denser ones."""
    apart = {(p, q): distance(tokens[p], tokens[q]) / math.sqrt(len(tokens[p])) for p in among for q in among}
    density = {}
    for p in among:
        near = sorted(apart[p, q] for q in among)[:neighbours]
        density[p] = math.exp(-sum(d * d for d in near) / len(near))
    score = {}
    for p in among:
        denser = [apart[p, q] for q in among if density[q] > density[p]]
        score[p] = density[p] * min(denser, default=max(apart.values()))
    return pick(score, count)


def absorbed(tokens: list[Vector], among: list[int], centres: list[int], own: float) -> dict[int, Vector]:
    """Each centre with the others of `among` that are nearest to it: `own` of itself, the rest their mean."""
    groups: dict[int, list[Vector]] = {c: [] for c in centres}
    for p in among:
        if centres and p not in centres:
            groups[min(centres, key=lambda c: distance(tokens[p], tokens[c]))].append(tokens[p])
    return {c: mix(own, tokens[c], mean(group)) if group else tokens[c] for c, group in groups.items()}
