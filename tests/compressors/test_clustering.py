"""Density peaks, and merging into them, against loops over tokens."""

import pytest
import torch

from langdc.compressors.clustering import distances, merged, peaks
from tests.compressors.grids import dice, lists, noise
from tests.reference.clustering import absorbed, density_peaks
from tests.reference.vectors import distance

GROUPS, PLACES, CHANNELS = 4, 14, 6
FOUR = torch.full((GROUPS,), 4)


def groups(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and which of them take part: all of the first group, about two thirds of the others."""
    among = torch.rand(GROUPS, PLACES, generator=dice(seed)) < 0.67
    among[0] = True
    return noise(GROUPS, 1, PLACES, CHANNELS, seed)[:, 0], among


def listed(mask: torch.Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def test_distances() -> None:
    values, _ = groups(0)
    found, tokens = distances(values), lists(values[:, None])
    for number in range(GROUPS):
        expected = [[distance(a, b) / CHANNELS**0.5 for b in tokens[number]] for a in tokens[number]]
        torch.testing.assert_close(found[number].double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)
    assert (found.diagonal(dim1=1, dim2=2) == 0).all()


@pytest.mark.parametrize(("neighbours", "as_topk"), [(1, False), (4, False), (4, True), (100, False), (100, True)])
@pytest.mark.parametrize("seed", range(4))
def test_peaks(neighbours: int, as_topk: bool, seed: int) -> None:
    values, among = groups(seed)
    count = torch.tensor([1, 3, 5, 0])
    near = torch.tensor([neighbours, max(2, neighbours // 2), neighbours, neighbours])
    found = peaks(distances(values), among, count, near, int(near.max()), as_topk)
    for number, tokens in enumerate(lists(values[:, None])):
        expected = density_peaks(tokens, listed(among[number]), int(count[number]), int(near[number]))
        assert listed(found[number]) == expected


def test_of_equal_peaks_the_earlier_wins() -> None:
    """Corners of a square: all as dense and as far apart, twice; the first of those that take part."""
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    values = square.expand(GROUPS, 4, 2)
    among = torch.ones(GROUPS, 4, dtype=torch.bool)
    among[1, 0] = False
    found = peaks(distances(values), among, torch.tensor([1, 1, 2, 4]), torch.full((GROUPS,), 2), 2)
    assert [listed(row) for row in found] == [[0], [1], [0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("own", [0.0, 0.4, 1.0])
def test_merging(own: float) -> None:
    """The centres of all groups, one after the other; a group may have none."""
    values, among = groups(7)
    apart = distances(values)
    counts = torch.tensor([2, 4, 0, 1])
    centres = peaks(apart, among, counts, FOUR, 4)
    found = merged(values, apart, among, centres, counts, own)
    expected = []
    for number, tokens in enumerate(lists(values[:, None])):
        chosen = listed(centres[number])
        mixed = absorbed(tokens, listed(among[number]), chosen, own)
        expected += [mixed[place] for place in chosen]
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)
