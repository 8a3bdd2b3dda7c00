"""EVS against its formulas, token by token."""

from dataclasses import replace

import pytest
import torch

from langdc import devices
from langdc.types import FeatureGrid
from tests.compressors.grids import SHAPES, blocks, check, compress, grid_of, lists, noise, scenes
from tests.reference.evs import evs, vllm_count


def kept(grid: FeatureGrid, **settings) -> list[int]:
    source = compress("evs", grid, **settings).source
    assert source is not None
    return source.tolist()


@pytest.mark.parametrize("shape", [*SHAPES, (20, 2, 2)])
@pytest.mark.parametrize("keep", [0.07, 0.31, 0.6, 0.83, 1.0])
@pytest.mark.parametrize("make", [noise, scenes])
def test_like_the_formulas(make, shape: tuple[int, int, int], keep: float) -> None:
    grid = grid_of(make(*shape))
    wanted = int(keep * grid.tokens)
    check(compress("evs", grid, keep=keep), grid, evs(lists(grid.values), wanted))
    check(compress("evs", grid, tokens=max(1, wanted)), grid, evs(lists(grid.values), wanted))


@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_of_equals_the_earlier_stay(variant: str) -> None:
    """Tokens along the axes: each is either the one before or nothing like it."""
    grid = replace(grid_of(blocks(7, 3, 4)), extra=())
    assert kept(grid, keep=0.6, variant=variant) == evs(lists(grid.values), int(0.6 * 84))


def test_by_hand() -> None:
    """The first frame, what is new in the third and the fourth, and of the still rest the earliest."""
    a, b = torch.eye(8)[:2]
    frames = [[a, a, a], [a, a, a], [a, b, a], [a, b, a + 0.1 * b]]
    values = torch.stack([torch.stack(frame) for frame in frames])[:, None]
    check(compress("evs", grid_of(values), tokens=6), grid_of(values), [0, 1, 2, 3, 7, 11])
    check(compress("evs", grid_of(values), tokens=2), grid_of(values), [0, 1, 2])


@pytest.mark.parametrize(("frames", "places"), [(10, 100), (5, 20), (16, 9), (3, 7), (128, 196)])
def test_counts_as_released(frames: int, places: int) -> None:
    """At a rate of 0.9, vLLM keeps 99 of 1000, as 1 - 0.9 is a little less than 0.1; a number of tokens is met."""
    grid = FeatureGrid(noise(frames, 1, places, 2))
    for rate in (0.05, 0.1, 0.3, 0.5, 0.7, 0.71, 0.75, 0.9, 0.93):
        found = compress("evs", grid, keep=1 - rate, variant="released")
        assert len(found) == vllm_count(frames, places, rate)
        assert len(compress("evs", grid, tokens=places + 1, variant="released")) == places + 1
    assert vllm_count(10, 100, 0.9) == 100 and vllm_count(100, 100, 0.9) == 999


def test_side_features_count_as_released_only() -> None:
    grid = grid_of(scenes(6, 3, 4))
    whole = torch.cat([grid.values, *grid.extra], -1)
    check(compress("evs", grid, keep=0.5), grid, evs(lists(grid.values), 36))
    check(compress("evs", grid, keep=0.5, variant="released"), grid, evs(lists(whole), 36))


def test_in_bfloat16_more_is_equal_as_released() -> None:
    """Tokens whose cosines are equal in bfloat16, though not in float32: the earlier ones stay, or the newer ones."""
    values = torch.ones(4, 1, 2, 64)
    values[1:, :, :, 0] = torch.tensor([[1.0, 1.0], [1.1, 1.1], [1.3, 1.3]])[:, None]
    grid = FeatureGrid(values.bfloat16())
    assert kept(grid, tokens=4, variant="released") == [0, 1, 2, 3]
    assert kept(grid, tokens=4) == [0, 1, 6, 7]


@pytest.mark.parametrize("size", [1, 1000, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_sizes_of_blocks(monkeypatch: pytest.MonkeyPatch, size: int, dtype: torch.dtype, variant: str) -> None:
    grid = FeatureGrid(scenes(13, 3, 5).to(dtype), None, (scenes(13, 3, 5, seed=9).to(dtype),))
    expected = kept(grid, keep=0.4, variant=variant)
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", size)
    assert kept(grid, keep=0.4, variant=variant) == expected


def test_bad_variant() -> None:
    with pytest.raises(ValueError, match="variant='paper'; allowed are 'fixed', 'released'"):
        compress("evs", grid_of(noise(2, 2, 2)), keep=0.5, variant="paper")
