"""Intervals cover what they claim to cover, and agree with closed forms and literal loops."""

import math

import numpy as np
import pytest
from scipy import stats

from langdc.evaluation.statistics import Difference, majority, mean, paired_difference
from tests.reference.statistics import slow_bootstrap, slow_cluster_error


def _clustered(rng: np.random.Generator, groups: int, true: float = 0.7) -> tuple[np.ndarray, list[str]]:
    """Answers of videos that differ in difficulty: 1 to 9 questions each, their chance drawn per video, mean `true`."""
    sizes = rng.integers(1, 10, groups)
    chance = rng.beta(true * 2, (1 - true) * 2, groups).repeat(sizes)
    return (rng.random(len(chance)) < chance).astype(float), [f"v{g}" for g in np.arange(groups).repeat(sizes)]


def test_one_question_per_video_is_the_binomial_error():
    values = [1.0] * 30 + [0.0] * 20
    found = mean(values, [str(i) for i in range(50)])
    error = math.sqrt(0.6 * 0.4 / 49)
    assert found.value == 0.6
    assert found.error == pytest.approx(error)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 49) * error)


def test_answers_that_repeat_within_a_video_tell_nothing_new():
    once = mean([1.0, 0.0, 1.0, 1.0], list("abcd"))
    copied = mean([1.0, 0.0, 1.0, 1.0] * 5, list("abcd") * 5)
    assert copied.error == pytest.approx(once.error)
    assert (copied.n, copied.clusters) == (20, 4)


def test_agrees_with_the_loops():
    values, clusters = _clustered(np.random.default_rng(0), 40)
    assert mean(list(values), clusters).error == pytest.approx(slow_cluster_error(list(values), clusters), rel=1e-12)


def test_covers_the_truth_in_95_of_100_simulations():
    rng = np.random.default_rng(1)
    trials, clustered, naive = 1000, 0, 0
    for _ in range(trials):
        values, clusters = _clustered(rng, 60)
        found = mean(values, clusters)
        clustered += found.low <= 0.7 <= found.high
        naive += abs(found.value - 0.7) <= 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    # the weights of unequal videos cost a little coverage; questions taken as independent lose far more
    assert 0.925 <= clustered / trials <= 0.97
    assert naive / trials < 0.85


def test_all_right_or_all_wrong_is_not_certain():
    right, wrong = (
        mean([1.0] * 80, [str(i // 2) for i in range(80)]),
        mean([0.0] * 80, [str(i // 2) for i in range(80)]),
    )
    exact = stats.binomtest(40, 40).proportion_ci(0.95, method="exact")
    assert (right.low, right.high) == pytest.approx((exact.low, 1.0))
    assert (wrong.low, wrong.high) == pytest.approx((0.0, 1 - exact.low))


def test_one_video_says_nothing_of_others():
    found = mean([1.0, 0.0], ["a", "a"])
    assert (found.low, found.high) == (0.0, 1.0)


def test_intervals_of_accuracies_stay_within_0_and_1():
    found = mean([1.0] * 11 + [0.0], [str(i) for i in range(12)])
    assert found.high == 1.0
    assert mean([30.0, 31.0], ["a", "b"]).high > 31.0


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], ["a", "b"])])
def test_values_without_clusters_are_refused(values: list[float], clusters: list[str]):
    with pytest.raises(ValueError, match="one name per value"):
        mean(values, clusters)


def test_bootstrap_agrees_with_the_loops():
    rng = np.random.default_rng(2)
    values, clusters = _clustered(rng, 30)
    other = (rng.random(len(values)) < 0.5).astype(float)
    found = paired_difference(list(values), list(other), clusters)
    slow = slow_bootstrap(list(values), list(other), clusters, 4000)
    assert found.value == pytest.approx(values.mean() - other.mean())
    assert found.low == pytest.approx(slow[100], abs=0.015)
    assert found.high == pytest.approx(slow[3900], abs=0.015)
    assert found == paired_difference(list(values), list(other), clusters)


def test_pairing_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(3)
    values, clusters = _clustered(rng, 100)
    reference = values.copy()
    reference[rng.choice(np.flatnonzero(values), 12, replace=False)] = 0.0  # the same answers, 12 of them lost
    one, other = mean(values, clusters), mean(reference, clusters)
    assert one.low < other.high
    assert paired_difference(values, reference, clusters).verdict == "better"
    assert paired_difference(reference, values, clusters).verdict == "worse"


def test_verdicts():
    assert Difference(0.1, 0.01, 0.2, 9).verdict == "better"
    assert Difference(-0.1, -0.2, -0.01, 9).verdict == "worse"
    assert Difference(0.1, 0.0, 0.2, 9).verdict == "not distinguishable at n = 9 videos"


def test_false_alarms_are_rare_between_equals():
    rng = np.random.default_rng(4)
    alarms = 0
    for trial in range(200):
        clusters = [f"v{i // 4}" for i in range(240)]
        chance = rng.beta(2, 1, 60).repeat(4)
        one, other = ((rng.random(240) < chance).astype(float) for _ in range(2))
        alarms += "not" not in paired_difference(one, other, clusters, seed=trial, resamples=1000).verdict
    assert alarms <= 22  # 10 expected; 23 or more has a chance below 0.0003


def test_majority():
    assert majority(["a", "b", "a", "c"]) == 0.5
    assert math.isnan(majority([]))
