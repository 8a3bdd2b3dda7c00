"""Literal forms of the statistics, in loops."""

import itertools
import math
import random
from collections import defaultdict


def slow_cluster_error(values: list[float], clusters: list[str]) -> float:
    """sqrt(G/(G-1) sum_g (sum_{i in g} (v_i - m))^2) / n."""
    n = len(values)
    m = sum(values) / n
    residual: dict[str, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        residual[cluster] += value - m
    groups = len(residual)
    return math.sqrt(groups / (groups - 1) * sum(r * r for r in residual.values())) / n


def slow_weighted(values: list[float], kinds: list[str], weights: dict[str, float]) -> float:
    """sum_k w_k m_k / sum_k w_k over the kinds that there are."""
    total = weight = 0.0
    for kind in sorted(set(kinds)):
        of_kind = [value for value, other in zip(values, kinds, strict=True) if other == kind]
        total += weights[kind] * sum(of_kind) / len(of_kind)
        weight += weights[kind]
    return total / weight


def slow_weighted_error(values: list[float], clusters: list[str], kinds: list[str], weights: dict[str, float]) -> float:
    """sqrt(G/(G-1) sum_g (sum_{i in g} w_k (v_i - m_k) / n_k)^2), the weights adding up to 1."""
    scale = sum(weights[kind] for kind in set(kinds))
    residual: dict[str, float] = defaultdict(float)
    for value, cluster, kind in zip(values, clusters, kinds, strict=True):
        of_kind = [other for other, its in zip(values, kinds, strict=True) if its == kind]
        residual[cluster] += weights[kind] / scale * (value - sum(of_kind) / len(of_kind)) / len(of_kind)
    groups = len(residual)
    return math.sqrt(groups / (groups - 1) * sum(r * r for r in residual.values()))


def slow_bootstrap(
    values: list[float],
    reference: list[float],
    clusters: list[str],
    resamples: int,
    kinds: list[str] | None = None,
    weights: dict[str, float] | None = None,
) -> list[float]:
    """Sorted resampled differences: draw G clusters with replacement, pool their questions, take the mean."""
    held: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for value, other, cluster, kind in zip(values, reference, clusters, kinds or [""] * len(values), strict=True):
        held[cluster].append((value - other, kind))
    names = sorted(held)
    dice = random.Random(1)
    found = []
    for _ in range(resamples):
        pooled = [pair for name in dice.choices(names, k=len(names)) for pair in held[name]]
        found.append(slow_weighted([v for v, _ in pooled], [k for _, k in pooled], weights or {"": 1.0}))
    return sorted(found)


def exact_p(values: list[float], reference: list[float], clusters: list[str]) -> float:
    """Twice the smaller share of all G^G ways to draw G clusters whose mean difference is <= 0, or >= 0; at most 1."""
    held: dict[str, list[float]] = defaultdict(list)
    for value, other, cluster in zip(values, reference, clusters, strict=True):
        held[cluster].append(value - other)
    below = above = ways = 0
    for drawn in itertools.product(sorted(held), repeat=len(held)):
        pooled = sum(change for name in drawn for change in held[name])
        below, above, ways = below + (pooled <= 0), above + (pooled >= 0), ways + 1
    return min(1.0, 2 * min(below, above) / ways)


def slow_holm(values: list[float], level: float) -> list[bool]:
    """Which hypotheses are rejected: the smallest p against level/m, the next against level/(m-1), until one fails."""
    rejected = [False] * len(values)
    for place, number in enumerate(sorted(range(len(values)), key=lambda n: values[n])):
        if values[number] > level / (len(values) - place):
            break
        rejected[number] = True
    return rejected


def slow_videos_needed(values: list[float], reference: list[float], clusters: list[str], difference: float) -> int:
    """(1.959964 + 0.841621)^2 s^2 / difference^2, s^2 the variance per video of the paired difference."""
    changes = [value - other for value, other in zip(values, reference, strict=True)]
    variance = len(set(clusters)) * slow_cluster_error(changes, clusters) ** 2
    return math.ceil((1.959964 + 0.841621) ** 2 * variance / difference**2)
