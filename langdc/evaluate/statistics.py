"""How certain the figures are. Several questions share one video, so intervals are over videos, not over questions.

One method for all: videos (clusters) are drawn with replacement, G at a time, the figure is computed of each resample,
and its interval lies between quantiles of the resamples. Where a benchmark's figure is a mean over kinds of question
(strata), a kind has its weight however many questions it has. Letters: n questions, G videos, K strata, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8
POINT = 0.01
RESAMPLES = 10_000  # of differences, whose p values are corrected for many comparisons
FEW_RESAMPLES = 2_000  # of intervals alone
BLOCK = 500  # resamples drawn at once: a block of weights [BLOCK,G] stays small


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
    """An entry's figure less the reference's, on the same questions, with its interval.

    `low` and `high` are the interval of this entry alone. `p`: two-sided; `corrected`: the same after Holm's
    correction over all entries compared, None where it is the only one. `needed`: how many videos it takes to detect a
    difference of one point, None where these cannot say.
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


Strata = tuple[Sequence[str], Mapping[str, float]]
"""The kind of each question [n], and how much each kind weighs in the figure."""


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums [G,K] and counts [G,K] of values by cluster and stratum, and the strata's `share` [K] of the figure."""

    sums: np.ndarray
    counts: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, clusters: Sequence[str], strata: Strata | None) -> "_Sums":
        kinds, weights = strata or ([""] * len(values), {"": 1.0})
        names, row = np.unique(np.asarray(clusters), return_inverse=True)
        found, column = np.unique(np.asarray(kinds), return_inverse=True)
        size, place = len(names) * len(found), row * len(found) + column
        sums = np.bincount(place, weights=values, minlength=size).reshape(len(names), len(found))
        counts = np.bincount(place, minlength=size).reshape(sums.shape)
        share = np.array([weights[kind] for kind in found.tolist()], dtype=float)
        return cls(sums, counts, share / share.sum())

    @property
    def value(self) -> float:
        return float((self.sums.sum(0) / self.counts.sum(0)) @ self.share)

    @property
    def error(self) -> float:
        """The cluster-robust (sandwich) standard error: sqrt(G/(G-1) sum_g r_g^2), with r_g the sum of
        w_k (value - m_k)/n_k in cluster g; infinite for one cluster.
        """
        groups, totals = len(self.counts), self.counts.sum(0)
        residual = (self.sums - self.counts * (self.sums.sum(0) / totals)) @ (self.share / totals)
        return float(np.sqrt(groups / (groups - 1) * (residual**2).sum())) if groups > 1 else np.inf

    def resampled(self, resamples: int, seed: int) -> np.ndarray:
        """The figure of each resample, sorted [R]. A stratum that a resample missed has no part in its figure."""
        found = []
        for weights in _weights(len(self.counts), resamples, seed):
            totals = weights @ self.counts
            means = (weights @ self.sums) / np.maximum(totals, 1)
            found.append(means @ self.share / ((totals > 0) @ self.share))
        return np.sort(np.concatenate(found))


@lru_cache(maxsize=2)
def _weights(groups: int, resamples: int, seed: int) -> list[np.ndarray]:
    """How often each of G clusters is drawn in each resample, in blocks [BLOCK,G]; the same for all entries."""
    rng, even = np.random.default_rng(seed), np.full(groups, 1 / groups)
    sizes = (min(BLOCK, resamples - first) for first in range(0, resamples, BLOCK))
    return [rng.multinomial(groups, even, size=size).astype(np.uint32) for size in sizes]


def _check_lengths(what: str, *lengths: int) -> None:
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(f"{what}: their lengths are {', '.join(map(str, lengths))}; give one of each, at least one.")


def mean(values: Sequence[float], clusters: Sequence[str], strata: Strata | None = None) -> Estimate:
    """The mean of `values` (0 or 1 for accuracy), with a bootstrap interval over clusters.

    The quantiles make the interval of G equal clusters as wide as Student's t with G-1 degrees of freedom would
    (the expanded percentile interval of Hesterberg, 2015). With `strata`, the mean is the sum of w_k m_k, their
    weights and means. Where every value is 0, or every value 1, resamples never vary, so the bound is the exact
    binomial one (Clopper-Pearson) of G trials. One cluster says nothing about others: the interval is all of the range.
    Raises ValueError if there are no values, or not one cluster per value.
    """
    found = np.asarray(values, dtype=float)
    _check_lengths("values and clusters", len(found), len(clusters))
    parts = _Sums.of(found, clusters, strata)
    value, groups = parts.value, len(parts.counts)
    binary = bool(np.isin(found, (0, 1)).all())
    if groups == 1:
        low, high = (0.0, 1.0) if binary else (-np.inf, np.inf)
    elif binary and value in (0, 1):
        edge = ((1 - LEVEL) / 2) ** (1 / groups)
        low, high = (edge, 1.0) if value else (0.0, 1 - edge)
    else:
        reach = np.sqrt(groups / (groups - 1)) * stats.t.ppf((1 + LEVEL) / 2, groups - 1)
        tail = float(stats.norm.cdf(-reach))
        low, high = np.quantile(parts.resampled(FEW_RESAMPLES, 0), [tail, 1 - tail])
    return Estimate(value, float(low), float(high), parts.error, len(found), groups)


def paired_difference(
    values: Sequence[float],
    reference: Sequence[float],
    clusters: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
    strata: Strata | None = None,
) -> Difference:
    """The mean of `values` less that of `reference`, given on the same questions, with a percentile bootstrap interval.

    With b the smaller of the numbers of resamples at or below 0 and at or above 0, p = 2 (b+1)/(R+1), and the interval
    leaves out the floor((1-level) (R+1)/2) - 1 lowest and highest resamples: so it holds 0 exactly when p > 1-level.
    Resampling a handful of videos that all say the same can show nothing else, so p is at least 2^(1-G), which is what
    G signs can tell; one video says nothing about others, and the interval is infinite.
    Raises ValueError if the three do not have one length.
    """
    _check_lengths("values, values of the reference, clusters", len(values), len(reference), len(clusters))
    parts = _Sums.of(np.asarray(values, dtype=float) - np.asarray(reference, dtype=float), clusters, strata)
    groups = len(parts.counts)
    if groups == 1:
        return Difference(parts.value, -np.inf, np.inf, 1, 1.0)
    drawn = parts.resampled(resamples, seed)
    edge = max(int((1 - LEVEL) * (resamples + 1) / 2), 1)
    smaller = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = max(min(1.0, 2 * (smaller + 1) / (resamples + 1)), 2.0 ** (1 - groups))
    needed = _videos_needed(parts.error, groups)
    return Difference(parts.value, float(drawn[edge - 1]), float(drawn[-edge]), groups, p, needed=needed)


def rank_correlation(
    values: Sequence[float], other: Sequence[float], clusters: Sequence[str], seed: int = 0, resamples: int = 400
) -> Estimate:
    """Spearman's rank correlation, with a percentile bootstrap interval over clusters.

    Resamples in which one side never varies say nothing and are left out. NaN, with the interval -1 to 1, where that is
    so of the values themselves. Raises ValueError if the three do not have one length, or are empty.
    """
    _check_lengths("values, other values, clusters", len(values), len(other), len(clusters))
    both = np.stack([np.asarray(values, dtype=float), np.asarray(other, dtype=float)])
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    centre, n, groups = _spearman(both), both.shape[1], len(names)
    if np.isnan(centre) or groups == 1:
        return Estimate(centre, -1.0, 1.0, np.inf, n, groups)
    weights = np.concatenate(_weights(groups, resamples, seed))[:, cluster]
    drawn = np.array([_spearman(np.repeat(both, times, axis=1)) for times in weights])
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(known) else (centre, centre)
    return Estimate(centre, float(low), float(high), float(known.std()), n, groups)


def _spearman(both: np.ndarray) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN where one side never varies
        return float(np.corrcoef(stats.rankdata(both, axis=1))[0, 1])


def _videos_needed(error: float, videos: int, difference: float = POINT) -> int | None:
    """How many videos it takes to detect a `difference`, given the standard error of a paired one of G videos.

    With s^2 = G error^2 the variance per video, it is (z_{(1+level)/2} + z_power)^2 s^2 / difference^2: the normal
    approximation of a two-sided test. None where G videos show no variance, or where there is one.
    """
    if error == 0 or not np.isfinite(error):
        return None
    reach = float(stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER))
    return int(np.ceil(videos * (reach * error / difference) ** 2))


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences, each with its p value after Holm's correction (1979).

    The i-th smallest of m is multiplied by m-i+1; it is at least the one before, and at most 1.
    """
    found, previous = list(differences), 0.0
    for place, index in enumerate(sorted(range(len(found)), key=lambda i: differences[i].p)):
        previous = min(1.0, max(previous, differences[index].p * (len(found) - place)))
        found[index] = replace(found[index], corrected=previous)
    return found
