"""DyCoke's merging in time against its formulas, frame by frame."""

import pytest
import torch

from tests.compressors.grids import SHAPES, blocks, check, compress, grid_of, lists, noise, scenes
from tests.reference.dycoke import dycoke, released


@pytest.mark.parametrize("shape", [*SHAPES, (3, 2, 2), (4, 3, 3), (6, 1, 5)])
@pytest.mark.parametrize("keep", [0.1, 0.31, 0.6, 0.83, 1.0])
@pytest.mark.parametrize("make", [noise, scenes])
def test_like_the_formulas(make, shape: tuple[int, int, int], keep: float) -> None:
    grid = grid_of(make(*shape))
    wanted = max(1, int(keep * grid.tokens))
    check(compress("dycoke", grid, keep=keep), grid, dycoke(lists(grid.values), wanted))
    check(compress("dycoke", grid, tokens=wanted), grid, dycoke(lists(grid.values), wanted))


@pytest.mark.parametrize("shape", [*SHAPES, (3, 2, 2), (4, 3, 3), (6, 1, 5)])
@pytest.mark.parametrize("keep", [0.1, 0.31, 0.83])
def test_as_released(shape: tuple[int, int, int], keep: float) -> None:
    grid = grid_of(scenes(*shape))
    check(compress("dycoke", grid, keep=keep, variant="released"), grid, released(lists(grid.values), keep))
    found = compress("dycoke", grid, variant="released", merging_ratio=0.75)
    check(found, grid, released(lists(grid.values), 0.25))


def test_of_equals_the_earlier_stay() -> None:
    """Tokens along the axes: each is either the one before or nothing like it."""
    grid = grid_of(blocks(7, 3, 4))
    check(compress("dycoke", grid, keep=0.6), grid, dycoke(lists(grid.values), int(0.6 * 84)))


def test_what_is_compared_with_what_by_hand() -> None:
    """Four frames of three tokens, one new in each; 3 + 3 tokens: the whole first frame and what is new."""
    a, b = torch.eye(8)[:2]
    frames = [[a, a, a], [b, a, a], [a, b, a], [a, b, b]]
    values = torch.stack([torch.stack(frame) for frame in frames])[:, None]
    check(compress("dycoke", grid_of(values), tokens=6), grid_of(values), [0, 1, 2, 3, 7, 11])


def test_every_fourth_frame_is_kept_whatever_the_budget() -> None:
    grid = grid_of(noise(9, 2, 3))
    check(compress("dycoke", grid, tokens=1), grid, [*range(6), *range(24, 30), *range(48, 54)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "paper"}, "variant='paper'; allowed are 'fixed', 'released'"),
        ({"merging_ratio": 0.5, "keep": None}, "merging_ratio=0.5 goes with variant='released'"),
        ({"merging_ratio": 1.5, "variant": "released", "keep": None}, r"merging_ratio=1.5 .* is in \[0, 1\]"),
        ({"merging_ratio": 0.5, "variant": "released"}, "stands in place of keep and tokens"),
        ({"merging_ratio": 0.5, "variant": "released", "keep": None, "tokens": 3}, "in place of keep and tokens"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress("dycoke", grid_of(noise(2, 2, 2)), **{"keep": 0.5, **settings})
