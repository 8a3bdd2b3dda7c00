"""How sure the figures are. Several questions share one video, so videos, not questions, are what is drawn at random.

Where a benchmark's figure is a mean over kinds of question (strata), a kind has a weight however many questions it has.
Letters: n questions, G videos (clusters), K strata, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8
POINT = 0.01
RESAMPLES = 10_000
FEW = 400  # for figures that must be ranked anew in every resample
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
    """A row's figure less the reference's, on the same questions, with its interval and what that says.

    `low` and `high` are the interval of this row alone. `p`: the two-sided p value that belongs to it; `corrected`: the
    same after Holm's correction over all rows compared, None where it is the only one. `needed`: how many videos it
    would take to see a difference of one point, None where these cannot say.
    """

    value: float
    low: float
    high: float
    clusters: int
    p: float
    corrected: float | None = None
    needed: int | None = None

    @property
    def verdict(self) -> str:
        """'better', 'worse' or 'not distinguishable at n = ... videos', by the corrected p value where there is one."""
        p = self.p if self.corrected is None else self.corrected
        if p > 1 - LEVEL:
            return f"not distinguishable at n = {self.clusters} videos"
        return "better" if self.value > 0 else "worse"


@dataclass(frozen=True)
class Strata:
    """The kind of each question [n], and how much each kind weighs in the figure."""

    kinds: Sequence[str]
    weights: Mapping[str, float]


def by_cluster(
    values: np.ndarray, clusters: Sequence[str], strata: Strata | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums [G,K] and counts [G,K] of `values` [n] in each cluster and stratum, and weights of strata that add up to 1.

    Without `strata` there is one, K = 1.
    """
    kinds, weights = ([""] * len(values), {"": 1.0}) if strata is None else (strata.kinds, strata.weights)
    names, row = np.unique(np.asarray(clusters), return_inverse=True)
    found, column = np.unique(np.asarray(kinds), return_inverse=True)
    shape, place = (len(names), len(found)), row * len(found) + column
    sums = np.bincount(place, weights=values, minlength=shape[0] * shape[1]).reshape(shape)
    counts = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    share = np.array([weights[kind] for kind in found.tolist()], dtype=float)
    return sums, counts, share / share.sum()


def mean(
    values: Sequence[float],
    clusters: Sequence[str],
    level: float = LEVEL,
    within: tuple[float, float] = (-np.inf, np.inf),
    strata: Strata | None = None,
) -> Estimate:
    """The mean of `values` (0 or 1 for accuracy), with an interval robust to dependence within clusters.

    With m the mean over n values and r_g the sum of (value - m)/n in cluster g, the variance is G/(G-1) sum r_g^2
    (the sandwich estimator of a mean with its usual small-sample factor) and the interval m +- t_{G-1} sqrt(variance),
    cut to what the values can be: `within`, or 0 to 1 when they are all 0 or 1. One value per cluster gives s/sqrt(n).
    With `strata`, m is the sum of w_k m_k, their weights and means, and a value counts w_k (value - m_k)/n_k in r_g.
    Where every value is 0, or every value 1, the sandwich is zero, which is too sure: then the bound is the exact
    binomial one (Clopper-Pearson) of G trials. One cluster says nothing about others: the interval is all of the range.
    Raises ValueError if there are no values.
    """
    found = np.asarray(values, dtype=float)
    if not len(found) or len(found) != len(clusters):
        raise ValueError(
            f"{len(found)} values and {len(clusters)} cluster names; give one name per value, at least one."
        )
    sums, counts, share = by_cluster(found, clusters, strata)
    totals = counts.sum(0)
    means = sums.sum(0) / totals
    n, groups, centre = len(found), len(counts), float(means @ share)
    binary = bool(np.isin(found, (0, 1)).all())
    if groups == 1:
        low, high, error = -np.inf, np.inf, np.inf
    elif binary and centre in (0, 1):
        edge = ((1 - level) / 2) ** (1 / groups)
        low, high, error = (edge, 1.0, 0.0) if centre else (0.0, 1 - edge, 0.0)
    else:
        residual = (sums - counts * means) @ (share / totals)
        error = float(np.sqrt(groups / (groups - 1) * (residual**2).sum()))
        reach = float(stats.t.ppf((1 + level) / 2, groups - 1)) * error
        low, high = centre - reach, centre + reach
    least, most = (0.0, 1.0) if binary else within
    return Estimate(centre, float(max(low, least)), float(min(high, most)), error, n, groups)


def paired_difference(
    values: Sequence[float],
    reference: Sequence[float],
    clusters: Sequence[str],
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    strata: Strata | None = None,
) -> Difference:
    """The mean of `values` less that of `reference`, given on the same questions, with a percentile bootstrap interval.

    Whole videos are drawn with replacement, G at a time; a resample's figure is the mean over all its questions, or
    the weighted one over the means of its `strata`. With
    b the smaller of the numbers of resamples at or below 0 and at or above 0, p = 2 (b+1)/(R+1), and the interval
    leaves out the floor((1-level) (R+1)/2) - 1 lowest and highest resamples: so it holds 0 exactly when p > 1-level.
    Resampling a handful of videos that all say the same can show nothing else, so p is at least 2^(1-G), which is what
    G signs can tell; one video tells nothing of others, and the interval is infinite.
    Raises ValueError if the three do not have one length.
    """
    if not len(values) == len(reference) == len(clusters) or not len(values):
        raise ValueError(
            f"{len(values)} values, {len(reference)} of the reference, {len(clusters)} cluster names; give one of each "
            "per question, at least one."
        )
    change = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    sums, counts, share = by_cluster(change, clusters, strata)
    centre, groups = float((sums.sum(0) / counts.sum(0)) @ share), len(counts)
    if groups == 1:
        return Difference(centre, -np.inf, np.inf, 1, 1.0)
    drawn = np.sort(_bootstrap(sums, counts, share, seed, resamples))
    edge = max(int((1 - level) * (resamples + 1) / 2), 1)
    least = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = max(min(1.0, 2 * (least + 1) / (resamples + 1)), 2.0 ** (1 - groups))
    needed = videos_needed(mean(list(change), clusters, strata=strata))
    return Difference(centre, float(drawn[edge - 1]), float(drawn[-edge]), groups, p, needed=needed)


def rank_correlation(
    values: Sequence[float],
    other: Sequence[float],
    clusters: Sequence[str],
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = FEW,
) -> Estimate:
    """Spearman's rank correlation, with a percentile bootstrap interval over clusters.

    Resamples in which one side never varies say nothing and are left out. NaN, with the interval -1 to 1, where that is
    so of the values themselves. Raises ValueError if the three do not have one length, or are empty.
    """
    if not len(values) == len(other) == len(clusters) or not len(values):
        raise ValueError(
            f"{len(values)} and {len(other)} values, {len(clusters)} cluster names; give one of each, at least one."
        )
    both = np.stack([np.asarray(values, dtype=float), np.asarray(other, dtype=float)])
    names, where = np.unique(np.asarray(clusters), return_inverse=True)
    centre, n, groups = _spearman(both), both.shape[1], len(names)
    if np.isnan(centre) or groups == 1:
        return Estimate(centre, -1.0, 1.0, np.inf, n, groups)
    members = np.split(np.argsort(where, kind="stable"), np.cumsum(np.bincount(where))[:-1])
    rng = np.random.default_rng(seed)
    picks = rng.integers(groups, size=(resamples, groups))
    drawn = [_spearman(both[:, np.concatenate([members[g] for g in pick])]) for pick in picks]
    known = np.array([rho for rho in drawn if not np.isnan(rho)] or [centre])
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(centre, float(low), float(high), float(known.std()), n, groups)


def _spearman(both: np.ndarray) -> float:
    ranks = stats.rankdata(both, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    spread = np.sqrt((ranks**2).sum(1)).prod()
    return float((ranks[0] * ranks[1]).sum() / spread) if spread else float("nan")


def videos_needed(found: Estimate, difference: float = POINT, power: float = POWER, level: float = LEVEL) -> int | None:
    """How many videos it takes to see a `difference`, given a paired one of G videos with its standard error.

    With s^2 = G error^2 the variance per video, (z_{(1+level)/2} + z_power)^2 s^2 / difference^2, rounded up: the usual
    normal approximation for a two-sided test. None where G videos show no variance, or where there is one.
    """
    if found.error == 0 or not np.isfinite(found.error):
        return None
    reach = float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power))
    return int(np.ceil(found.clusters * (reach * found.error / difference) ** 2))


def holm(values: Sequence[float]) -> list[float]:
    """p values of m tests, so raised that none of them is a false alarm with more than the usual probability.

    The i-th smallest is multiplied by m-i+1, and is at least the one before; at most 1 (Holm, 1979).
    """
    order = np.argsort(values, kind="stable")
    raised = np.asarray(values, dtype=float)[order] * np.arange(len(order), 0, -1)
    found = np.empty(len(order))
    found[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return found.tolist()


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences, each with its p value after Holm's correction over all of them."""
    raised = holm([found.p for found in differences])
    return [replace(found, corrected=p) for found, p in zip(differences, raised, strict=True)]


def _bootstrap(sums: np.ndarray, counts: np.ndarray, share: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of resampled clusters [R]: how often each cluster is drawn is multinomial, so no index array is needed.

    A stratum that a resample missed has no part in its mean.
    """
    rng = np.random.default_rng(seed)
    groups = len(counts)
    found = []
    for first in range(0, resamples, BLOCK):
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=min(BLOCK, resamples - first))
        totals = drawn @ counts
        means = (drawn @ sums) / np.maximum(totals, 1)
        found.append(means @ share / ((totals > 0) @ share))
    return np.concatenate(found)


def majority(answers: Sequence[str]) -> float:
    """The accuracy of always giving the most frequent answer; NaN if there are none."""
    if not len(answers):
        return float("nan")
    return float(np.unique(np.asarray(answers), return_counts=True)[1].max() / len(answers))
