"""Literal forms of the statistics, in loops."""

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


def slow_bootstrap(values: list[float], reference: list[float], clusters: list[str], resamples: int) -> list[float]:
    """Sorted resampled mean differences: draw G clusters with replacement, pool their questions, take the mean."""
    held: dict[str, list[float]] = defaultdict(list)
    for value, other, cluster in zip(values, reference, clusters, strict=True):
        held[cluster].append(value - other)
    names = sorted(held)
    dice = random.Random(1)
    found = []
    for _ in range(resamples):
        pooled = [change for name in dice.choices(names, k=len(names)) for change in held[name]]
        found.append(sum(pooled) / len(pooled))
    return sorted(found)
