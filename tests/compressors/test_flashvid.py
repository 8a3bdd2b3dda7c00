"""FlashVID against its formulas, token by token."""

from dataclasses import asdict

import pytest
import torch

from tests.compressors.grids import check, compress, dice, grid_of, lists, noise, scenes, scores
from tests.reference.flashvid import Settings, flashvid

SHAPES = [(1, 3, 4), (2, 1, 5), (5, 3, 5), (8, 4, 4), (9, 2, 5), (13, 3, 6)]
OPTIONS = [
    Settings(),
    Settings(segments=1, change=-1.0, alike=0.3),
    Settings(segments=3, change=0.0, selected=0.4, alike=0.6, events=False),
    Settings(segments=2, change=0.2, selected=0.0, alike=-0.5),
    Settings(selected=1.0),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.11, 0.31, 0.83])
@pytest.mark.parametrize("settings", OPTIONS, ids=range(len(OPTIONS)))
def test_like_the_formulas(shape: tuple[int, int, int], keep: float, settings: Settings) -> None:
    for make, saliency in ((noise, True), (scenes, False)):
        grid = grid_of(make(*shape), saliency)
        wanted = max(1, int(keep * grid.tokens))
        expected = flashvid(lists(grid.values), scores(grid), wanted, settings)
        assert len(expected[0]) == wanted
        check(compress("flashvid", grid, keep=keep, **asdict(settings)), grid, *expected)


def test_still_tokens_become_one_tree_by_hand() -> None:
    """A scene of four frames: nothing is selected, and each place is one tree, its mean, at the first frame."""
    values = noise(1, 2, 3).repeat(4, 1, 1, 1) + 0.01 * noise(4, 2, 3, seed=1)
    found = compress("flashvid", grid_of(values), tokens=6, segments=1, selected=0.0)
    check(found, grid_of(values), list(range(6)), values.mean(0).flatten(0, 1).tolist())


def test_a_tree_follows_what_moves() -> None:
    """Places change from frame to frame, the tree stays with its token; a budget of one more leaves one unmerged."""
    token = noise(1, 1, 5)[0, 0]
    order = torch.stack([torch.randperm(5, generator=dice(seed)) for seed in range(3)])
    values = token[order][:, None] + 0.01 * noise(3, 1, 5, seed=2)
    means = torch.stack([values[:, 0][order == which].mean(0) for which in order[0]])
    settings = {"segments": 1, "selected": 0.0}
    check(compress("flashvid", grid_of(values), tokens=5, **settings), grid_of(values), list(range(5)), means.tolist())
    assert len(compress("flashvid", grid_of(values), tokens=6, **settings)) == 6


def test_released_keeps_more_and_lets_deep_trees_grow() -> None:
    """Rounded up to one of six tokens in each of four frames; the six trees of four are divided by two, the first token
    and its child. At least two of the four clusters are one tree.
    """
    values = noise(1, 2, 3).repeat(4, 1, 1, 1) + 0.001 * noise(4, 2, 3, seed=1)
    settings = {"segments": 1, "selected": 0.0, "variant": "released"}
    found = compress("flashvid", grid_of(values), keep=0.04, **settings)
    assert found.source is not None and len(found) == 4
    twice = 2 * values.mean(0).flatten(0, 1)[found.source]
    assert torch.isclose(found.values, twice, atol=1e-4).all(1).sum() >= 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "paper"}, "variant='paper'; allowed are 'fixed', 'released'"),
        ({"segments": 0}, "segments=0 must be at least 1"),
        ({"selected": 1.5}, r"selected=1.5 in \[0, 1\]"),
        ({"alike": -2.0}, r"alike=-2.0 in \[-1, 1\]"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress("flashvid", grid_of(noise(2, 2, 2)), keep=0.5, **settings)
