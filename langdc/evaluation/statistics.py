"""How sure the figures are. Several questions share one video, so videos, not questions, are what is drawn at random.

Letters: n questions, G videos (clusters), R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 10_000
BLOCK = 1_000  # resamples drawn at once: a block of weights [BLOCK,G] stays small


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval. `error`: the standard error; `n` questions of `clusters` videos."""

    value: float
    low: float
    high: float
    error: float
    n: int
    clusters: int


@dataclass(frozen=True)
class Difference:
    """A row's figure less the reference's, on the same questions, with its interval and what that says."""

    value: float
    low: float
    high: float
    clusters: int

    @property
    def verdict(self) -> str:
        """'better', 'worse' or 'not distinguishable at n = ... videos'."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else f"not distinguishable at n = {self.clusters} videos"


def by_cluster(values: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums [G] and counts [G] of `values` [n] within each cluster, clusters in order of name."""
    names, where = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(where, weights=values, minlength=len(names)), np.bincount(where, minlength=len(names))


def mean(values: Sequence[float], clusters: Sequence[str], level: float = LEVEL) -> Estimate:
    """The mean of `values` (0 or 1 for accuracy), with an interval robust to dependence within clusters.

    With m the mean over n values and r_g the sum of (value - m) in cluster g, the variance is G/(G-1) sum r_g^2 / n^2
    (the sandwich estimator of a mean with its usual small-sample factor) and the interval m +- t_{G-1} sqrt(variance),
    cut to the range of the values' kind when they are all 0 or 1. One value per cluster gives s/sqrt(n). Where every
    value is 0, or every value 1, the sandwich is zero, which is too sure: then the bound is the exact binomial one
    (Clopper-Pearson) of G trials. One cluster says nothing about others: the interval is infinite, or 0 to 1.
    Raises ValueError if there are no values.
    """
    found = np.asarray(values, dtype=float)
    if not len(found) or len(found) != len(clusters):
        raise ValueError(
            f"{len(found)} values and {len(clusters)} cluster names; give one name per value, at least one."
        )
    sums, counts = by_cluster(found, clusters)
    n, groups, centre = len(found), len(counts), float(found.mean())
    binary = bool(np.isin(found, (0, 1)).all())
    if groups == 1:
        low, high, error = -np.inf, np.inf, np.inf
    elif binary and centre in (0, 1):
        edge = ((1 - level) / 2) ** (1 / groups)
        low, high, error = (edge, 1.0, 0.0) if centre else (0.0, 1 - edge, 0.0)
    else:
        residual = sums - counts * centre
        error = float(np.sqrt(groups / (groups - 1) * (residual**2).sum()) / n)
        reach = float(stats.t.ppf((1 + level) / 2, groups - 1)) * error
        low, high = centre - reach, centre + reach
    if binary:
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(centre, float(low), float(high), error, n, groups)


def paired_difference(
    values: Sequence[float],
    reference: Sequence[float],
    clusters: Sequence[str],
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Difference:
    """The mean of `values` less that of `reference`, given on the same questions, with a percentile bootstrap interval.

    Whole videos are drawn with replacement, G at a time; a resample's figure is the mean over all its questions.
    Raises ValueError if the three do not have one length.
    """
    if not len(values) == len(reference) == len(clusters) or not len(values):
        raise ValueError(f"{len(values)} values, {len(reference)} of the reference, {len(clusters)} cluster names.")
    change = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    sums, counts = by_cluster(change, clusters)
    low, high = np.quantile(_bootstrap(sums, counts, seed, resamples), [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(change.mean()), float(low), float(high), len(counts))


def _bootstrap(sums: np.ndarray, counts: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of resampled clusters [R]: how often each cluster is drawn is multinomial, so no index array is needed."""
    rng = np.random.default_rng(seed)
    groups = len(counts)
    found = []
    for first in range(0, resamples, BLOCK):
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=min(BLOCK, resamples - first))
        found.append((drawn @ sums) / (drawn @ counts))
    return np.concatenate(found)


def majority(answers: Sequence[str]) -> float:
    """The accuracy of always giving the most frequent answer; NaN if there are none."""
    if not len(answers):
        return float("nan")
    return float(np.unique(np.asarray(answers), return_counts=True)[1].max() / len(answers))
