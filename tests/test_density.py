"""Density counts cues, targets follow it, and the measures are those of their names."""

import math

import pytest

from langdc.data.records import SegmentRecord
from langdc.density import _cues_of, cue_recall, densities, density_correlation

RICH = SegmentRecord(
    subjects=["dog", "man"], attributes=["brown"], actions=["runs"], background=["park", "dog"], caption="a dog"
)
STILL = SegmentRecord(caption="nothing moves")


def test_density_follows_the_cues() -> None:
    assert _cues_of(RICH) == ["dog", "man", "brown", "runs", "park", "dog"] and densities([RICH]) == [6]


def test_nothing_to_see() -> None:
    assert cue_recall("anything", STILL) is None


def test_density_is_known_of_all_segments_of_a_record_or_of_none() -> None:
    stated = RICH.model_copy(update={"density": 2})
    assert densities([stated, RICH, STILL]) == [2, 6, 0]
    assert densities([STILL, STILL.model_copy(update={"density": 0})]) == [0, 0]
    assert densities([STILL, STILL]) == densities([]) == []


@pytest.mark.parametrize(
    ("caption", "recall"),
    [("A brown  dog runs", 4 / 6), ("dogs run in the parking lot", 0.0), ("DOG man brown runs park", 1.0), ("", 0.0)],
)
def test_recall_counts_whole_words(caption: str, recall: float) -> None:
    assert cue_recall(caption, RICH) == pytest.approx(recall)


@pytest.mark.parametrize(
    ("densities", "tokens", "expected"),
    [([0, 1, 2, 3], [1, 5, 6, 90], 1.0), ([0, 1, 2, 3], [9, 5, 4, 1], -1.0), ([0, 1, 2, 3], [1, 3, 2, 4], 0.8)],
)
def test_correlation_of_ranks(densities: list[int], tokens: list[int], expected: float) -> None:
    assert density_correlation(densities, tokens) == pytest.approx(expected)


def test_correlation_of_ties_is_that_of_mean_ranks() -> None:
    # ranks 1.5 1.5 3 4 and 1 2.5 2.5 4: Pearson of the ranks by hand
    assert density_correlation([0, 0, 1, 2], [3, 5, 5, 8]) == pytest.approx(3.75 / 4.5)


def test_correlation_that_does_not_exist() -> None:
    assert math.isnan(density_correlation([1, 1, 1], [1, 2, 3]))
    with pytest.raises(ValueError, match="2 densities and 2 token counts"):
        density_correlation([1, 2], [1, 2])
    with pytest.raises(ValueError, match="4 densities and 3"):
        density_correlation([1, 2, 3, 4], [1, 2, 3])
