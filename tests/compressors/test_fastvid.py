"""FastVID against its formulas, segment by segment."""

from dataclasses import asdict

import pytest
import torch

from tests.compressors.grids import SHAPES, check, compress, grid_of, lists, noise, scenes, scores
from tests.reference.fastvid import Settings, fastvid

OPTIONS = [
    Settings(),
    Settings(segments=1, change=-1.0, still=0.9),
    Settings(segments=2, change=0.3, still=-1.0, stride=2, own=0.0),
    Settings(segments=3, change=0.5, still=0.95, context=0.9, stride=1, own=0.9),
    Settings(segments=100, context=1.0),
    Settings(segments=2, change=-1.0, still=2.0, context=0.0, stride=3, own=1.0),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.11, 0.31, 0.83])
@pytest.mark.parametrize("settings", OPTIONS, ids=range(len(OPTIONS)))
def test_like_the_formulas(shape: tuple[int, int, int], keep: float, settings: Settings) -> None:
    for make, saliency in ((noise, True), (scenes, False)):
        grid = grid_of(make(*shape), saliency)
        expected = fastvid(lists(grid.values), scores(grid), keep, settings)
        check(compress("fastvid", grid, keep=keep, **asdict(settings)), grid, *expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.11, 0.31, 0.83])
@pytest.mark.parametrize("settings", OPTIONS, ids=range(len(OPTIONS)))
def test_as_released(shape: tuple[int, int, int], keep: float, settings: Settings) -> None:
    """Lengths say what is salient whatever the encoder attends to, and each frame's budget is rounded down."""
    grid = grid_of(scenes(*shape), saliency=True)
    expected = fastvid(lists(grid.values), scores(grid_of(grid.values)), keep, settings, released=True)
    check(compress("fastvid", grid, keep=keep, variant="released", **asdict(settings)), grid, *expected)


def test_a_share_of_less_than_a_token_is_one() -> None:
    """The last frame of one segment gets it: its longest token."""
    grid = grid_of(noise(3, 2, 3))
    expected = 12 + int(grid.values[2].flatten(0, 1).norm(dim=-1).argmax())
    check(compress("fastvid", grid, keep=0.01), grid, [expected])


def test_stretches_that_are_still_are_kept_at_their_last_frame() -> None:
    """Frames a a a b b b c c: kept are tokens of frames 2, 5 and 7 alone."""
    values = noise(3, 3, 4).repeat_interleave(3, 0)[:8]
    found = compress("fastvid", grid_of(values), keep=0.4, segments=3, change=-1.0)
    assert found.source is not None
    assert set((found.source // 12).tolist()) == {2, 5, 7}


def test_one_frame_by_hand() -> None:
    """Four of ten: the two longest; and of two bunches of four the middle, half itself and half the others' mean."""
    values = torch.zeros(10, 8)
    values[0, 2], values[9, 3] = 50.0, 60.0
    values[1:5, :2] = torch.tensor([[10, 0.1], [10, 0], [10, -0.1], [10.1, 0]])
    values[5:9, :2] = torch.tensor([[0.3, 10], [-0.3, 10], [0, 10.3], [0, 10]])
    expected = values.clone()
    expected[2, :2] = torch.tensor([10 + 0.1 / 6, 0])
    expected[8, :2] = torch.tensor([0, 10 + 0.3 / 6])
    grid = grid_of(values.view(1, 2, 5, 8))
    check(compress("fastvid", grid, keep=0.4), grid, [0, 2, 8, 9], expected[[0, 2, 8, 9]].tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "paper"}, "variant='paper'; allowed are 'fixed', 'released'"),
        ({"segments": 0}, "segments=0 and stride=4 must be at least 1"),
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"context": 1.5}, r"context=1.5 and own=0.5 in \[0, 1\]"),
        ({"own": -0.1}, r"own=-0.1 in \[0, 1\]"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress("fastvid", grid_of(noise(2, 2, 2)), keep=0.5, **settings)
