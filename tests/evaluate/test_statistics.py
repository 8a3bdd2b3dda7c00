"""Intervals cover what they claim to cover, and agree with closed forms and literal loops."""

import math

import numpy as np
import pytest
from scipy import stats

from langdc.evaluate.statistics import (
    Difference,
    _videos_needed,
    corrected,
    mean,
    paired_difference,
    rank_correlation,
)
from tests.reference.statistics import (
    exact_p,
    slow_bootstrap,
    slow_cluster_error,
    slow_holm,
    slow_videos_needed,
    slow_weighted,
    slow_weighted_error,
)


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
    # resamples of a binomial are multiples of 1/50, so the interval is Student's up to one of these steps
    reach = stats.t.ppf(0.975, 49) * error
    assert (found.low, found.high) == pytest.approx((0.6 - reach, 0.6 + reach), abs=0.02)


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


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], ["a", "b"])])
def test_values_without_clusters_are_refused(values: list[float], clusters: list[str]):
    with pytest.raises(ValueError, match="give one of each"):
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


KINDS = {"rare": 1.0, "plain": 1.0, "half": 1 / 3}


def _kinds(rng: np.random.Generator, clusters: list[str]) -> list[str]:
    """Mostly plain questions."""
    return rng.choice(list(KINDS), len(clusters), p=[0.1, 0.6, 0.3]).tolist()


def test_kinds_weigh_what_they_should_however_many_questions_they_have():
    rng = np.random.default_rng(6)
    values, clusters = _clustered(rng, 40)
    kinds = _kinds(rng, clusters)
    found = mean(list(values), clusters, strata=(kinds, KINDS))
    assert found.value == pytest.approx(slow_weighted(list(values), kinds, KINDS), rel=1e-12)
    assert found.value != pytest.approx(values.mean(), abs=1e-3)
    assert found.error == pytest.approx(slow_weighted_error(list(values), clusters, kinds, KINDS), rel=1e-12)
    alike = (["one"] * len(values), {"one": 5.0})
    assert mean(list(values), clusters, strata=alike) == mean(list(values), clusters)


def test_weighted_intervals_cover_the_truth():
    rng = np.random.default_rng(7)
    held, trials, true = 0, 600, {"rare": 0.9, "plain": 0.5, "half": 0.3}
    figure = sum(KINDS[kind] * true[kind] for kind in KINDS) / sum(KINDS.values())
    for _ in range(trials):
        sizes = rng.integers(3, 12, 60)
        clusters = [f"v{g}" for g in np.arange(60).repeat(sizes)]
        kinds = _kinds(rng, clusters)
        ease = rng.uniform(-0.1, 0.1, 60).repeat(sizes)  # videos differ
        values = (rng.random(len(kinds)) < np.array([true[kind] for kind in kinds]) + ease).astype(float)
        found = mean(values, clusters, strata=(kinds, KINDS))
        held += found.low <= figure <= found.high
    assert 0.925 <= held / trials <= 0.975


def test_weighted_bootstrap_agrees_with_the_loops():
    rng = np.random.default_rng(8)
    values, clusters = _clustered(rng, 30)
    other, kinds = (rng.random(len(values)) < 0.5).astype(float), _kinds(rng, clusters)
    found = paired_difference(list(values), list(other), clusters, strata=(kinds, KINDS))
    slow = slow_bootstrap(list(values), list(other), clusters, 4000, kinds, KINDS)
    assert found.value == pytest.approx(slow_weighted(list(values - other), kinds, KINDS))
    assert found.low == pytest.approx(slow[100], abs=0.02)
    assert found.high == pytest.approx(slow[3900], abs=0.02)


def test_pairing_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(3)
    values, clusters = _clustered(rng, 100)
    reference = values.copy()
    reference[rng.choice(np.flatnonzero(values), 12, replace=False)] = 0.0  # the same answers, 12 of them lost
    one, other = mean(values, clusters), mean(reference, clusters)
    assert one.low < other.high
    assert paired_difference(values, reference, clusters).verdict == "better"
    assert paired_difference(reference, values, clusters).verdict == "worse"


def test_verdicts_follow_the_corrected_p_value():
    assert Difference(0.1, 0.01, 0.2, 9, p=0.03).verdict == "better"
    assert Difference(-0.1, -0.2, -0.01, 9, p=0.05).verdict == "worse"
    assert Difference(0.1, 0.0, 0.2, 9, p=0.06).verdict == "not distinguishable at n = 9 videos"
    assert Difference(0.1, 0.01, 0.2, 9, p=0.03, corrected=0.06).verdict == "not distinguishable at n = 9 videos"


def test_the_p_value_and_the_interval_never_disagree():
    rng = np.random.default_rng(5)
    sides = set()
    for trial in range(300):
        values, clusters = _clustered(rng, 20, true=0.6)
        other = (rng.random(len(values)) < 0.45).astype(float)
        found = paired_difference(values, other, clusters, seed=trial, resamples=500)
        assert (found.p <= 0.05) == (not found.low <= 0 <= found.high)
        sides.add(found.p <= 0.05)
    assert sides == {True, False}


def test_the_p_value_is_that_of_all_ways_to_draw_the_videos():
    values = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    reference = [0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    clusters = list("aabbcdeef")
    exact = exact_p(values, reference, clusters)
    assert 0.05 < exact < 0.5
    # standard error of a share of 40 000 draws, doubled as p is: at most 0.004; six of them would be a defect
    assert paired_difference(values, reference, clusters, resamples=40_000).p == pytest.approx(exact, abs=0.01)
    assert paired_difference(reference, values, clusters, resamples=40_000).p == pytest.approx(exact, abs=0.01)


def test_no_difference_has_a_p_value_of_one():
    found = paired_difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], list("abc"))
    assert (found.value, found.p, found.needed) == (0.0, 1.0, None)


def test_few_videos_that_agree_prove_little():
    assert [paired_difference([1.0] * g, [0.0] * g, list("abcdefgh")[:g]).p for g in (2, 5, 8)] == [0.5, 2**-4, 2**-7]
    alone = paired_difference([1.0, 1.0], [0.0, 0.0], ["a", "a"])
    assert (alone.value, alone.low, alone.high, alone.p) == (1.0, -math.inf, math.inf, 1.0)
    assert alone.verdict == "not distinguishable at n = 1 videos"


def test_differences_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="lengths are 1, 2, 1"):
        paired_difference([1.0], [0.0, 1.0], ["a"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # by hand: x4 for the smallest, x3, x2, and never down
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
        ([0.9, 0.6], [1.0, 1.0]),
        ([0.04], [0.04]),
        ([], []),
    ],
)
def test_holm(given: list[float], expected: list[float]):
    found = corrected([Difference(0.1, 0.0, 0.2, 9, p) for p in given])
    assert [one.corrected for one in found] == pytest.approx(expected)


def test_holm_rejects_what_the_steps_reject():
    rng = np.random.default_rng(6)
    for _ in range(300):
        given = list(rng.beta(0.4, 4, 8))
        found = corrected([Difference(0.1, 0.0, 0.2, 9, p) for p in given])
        assert [(one.corrected or 0) <= 0.05 for one in found] == slow_holm(given, 0.05)


def test_correction_keeps_the_interval_and_may_change_the_verdict():
    found = corrected([Difference(0.1, 0.01, 0.2, 9, p) for p in (0.03, 0.001, 0.5)])
    assert [one.corrected for one in found] == pytest.approx([0.06, 0.003, 0.5])
    assert [one.verdict.split()[0] for one in found] == ["not", "better", "not"]
    assert {(one.low, one.high) for one in found} == {(0.01, 0.2)}


def test_videos_needed_by_hand_and_by_the_loops():
    # 100 videos, 10 gained and 10 lost: variance 0.2 * 100/99 per video
    values, reference = [1.0] * 10 + [0.0] * 90, [0.0] * 10 + [1.0] * 10 + [0.0] * 80
    found = paired_difference(values, reference, [str(i) for i in range(100)])
    assert found.needed == math.ceil(7.848879734 * 0.2 * 100 / 99 / 0.01**2)
    values, clusters = _clustered(np.random.default_rng(7), 50)
    other = (np.random.default_rng(8).random(len(values)) < 0.5).astype(float)
    wanted = slow_videos_needed(list(values), list(other), clusters, 0.01)
    assert paired_difference(values, other, clusters).needed == pytest.approx(wanted, rel=1e-5)
    assert _videos_needed(mean([1.0, 1.0], ["a", "a"]).error, 1) is None


def test_with_the_videos_needed_a_difference_is_seen_4_times_in_5():
    rng = np.random.default_rng(9)

    def sample(videos: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        chance = rng.beta(2, 2, videos).repeat(3) * 0.9
        pair = [(rng.random(3 * videos) < part).astype(float) for part in (chance + 0.1, chance)]
        return pair[0], pair[1], [f"v{g}" for g in np.arange(videos).repeat(3)]

    values, reference, clusters = sample(4000)
    needed = _videos_needed(mean(list(values - reference), clusters).error, 4000, difference=0.1)
    assert needed is not None and 80 < needed < 200
    seen = [paired_difference(*sample(needed), seed=n, resamples=500).p <= 0.05 for n in range(400)]
    assert 0.72 <= np.mean(seen) <= 0.88  # standard error 0.02: four of them


def test_intervals_stay_within_the_values():
    found = mean([0.9, 1.0, 1.0, 0.2], list("abcd"))
    assert 0.2 <= found.low < found.value < found.high <= 1.0


def test_false_alarms_are_rare_between_equals():
    rng = np.random.default_rng(4)
    alarms = 0
    for trial in range(200):
        clusters = [f"v{i // 4}" for i in range(240)]
        chance = rng.beta(2, 1, 60).repeat(4)
        one, other = ((rng.random(240) < chance).astype(float) for _ in range(2))
        alarms += "not" not in paired_difference(one, other, clusters, seed=trial, resamples=1000).verdict
    assert alarms <= 22  # 10 expected; 23 or more has a chance below 0.0003


def test_rank_correlation_is_spearmans_and_its_interval_covers_it():
    rng = np.random.default_rng(9)
    held = 0
    for trial in range(60):
        ease = rng.normal(size=50).repeat(4)
        one, two = ease + rng.normal(size=200), ease + rng.normal(size=200)
        found = rank_correlation(one.tolist(), two.tolist(), [f"v{g}" for g in np.arange(50).repeat(4)], seed=trial)
        assert found.value == pytest.approx(float(stats.spearmanr(one, two).statistic))
        held += found.low <= 6 / math.pi * math.asin(0.5 / 2) <= found.high  # of normal values correlated by 0.5
    assert 51 <= held <= 60


def test_rank_correlation_where_nothing_can_be_said():
    still = rank_correlation([1, 1, 1], [1, 2, 3], list("abc"))
    assert math.isnan(still.value) and (still.low, still.high) == (-1.0, 1.0)
    alone = rank_correlation([1, 2, 3], [1, 2, 3], list("aaa"))
    assert alone.value == pytest.approx(1.0) and (alone.low, alone.high) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="one of each"):
        rank_correlation([1], [1, 2], ["a"])
