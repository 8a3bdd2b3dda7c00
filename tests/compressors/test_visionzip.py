"""VisionZip against its formulas, frame by frame."""

import pytest
import torch

from tests.compressors.grids import SHAPES, blocks, check, compress, grid_of, lists, noise, scenes, scores
from tests.reference.visionzip import visionzip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.07, 0.31, 0.83])
@pytest.mark.parametrize(("dominant", "neighbours"), [(0.6, 5), (0.1, 1), (0.3, 100), (1.0, 5)])
def test_like_the_formulas(shape: tuple[int, int, int], keep: float, dominant: float, neighbours: int) -> None:
    for make, saliency in ((noise, True), (scenes, False)):
        grid = grid_of(make(*shape), saliency)
        wanted = max(1, int(keep * grid.tokens))
        expected = visionzip(lists(grid.values), scores(grid), wanted, dominant, neighbours)
        found = compress("visionzip", grid, keep=keep, dominant=dominant, neighbours=neighbours)
        assert len(found) == wanted
        check(found, grid, *expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.01, 0.31, 1.0])
def test_as_released(shape: tuple[int, int, int], keep: float) -> None:
    """Lengths say what is salient whatever the encoder attends to, and each frame's budget is rounded down."""
    grid = grid_of(scenes(*shape), saliency=True)
    each = max(1, int(keep * shape[1] * shape[2]))
    expected = visionzip(lists(grid.values), scores(grid_of(grid.values)), each * shape[0], 0.6, 5)
    check(compress("visionzip", grid, keep=keep, variant="released"), grid, *expected)


def test_less_than_a_token_per_frame_goes_evenly() -> None:
    """By hand: three tokens for seven frames are the longest of frames 2, 4 and 6."""
    values = noise(7, 2, 3)
    values[:, 1, 2] *= 20
    check(compress("visionzip", grid_of(values), tokens=3), grid_of(values), [2 * 6 + 5, 4 * 6 + 5, 6 * 6 + 5])


def test_of_equals_the_earlier_stay_and_take_in() -> None:
    """Tokens along the axes with equal lengths: each tie is a true one."""
    grid = grid_of(blocks(5, 3, 4))
    expected = visionzip(lists(grid.values), scores(grid), 30, 0.5, 2)
    check(compress("visionzip", grid, tokens=30, dominant=0.5, neighbours=2), grid, *expected)


def test_groups_by_hand() -> None:
    """One frame a b b c' c: the longest, c', stays; b has company and takes in its twin and, as no less like it, a."""
    a, b, c = torch.eye(8)[:3]
    values = torch.stack([a, b, b, 3 * c, c])[None, None]
    found = compress("visionzip", grid_of(values), tokens=2, neighbours=1)
    check(found, grid_of(values), [1, 3], [((a + 2 * b + c) / 4).tolist(), (3 * c).tolist()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "paper"}, "variant='paper'; allowed are 'fixed', 'released'"),
        ({"dominant": 0.0}, r"dominant=0.0 must be in \(0, 1\]"),
        ({"dominant": 1.1}, r"dominant=1.1 must be in \(0, 1\]"),
        ({"neighbours": 0}, "neighbours=0 at least 1"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress("visionzip", grid_of(noise(2, 2, 2)), keep=0.5, **settings)
