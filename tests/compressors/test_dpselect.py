"""DPSelect against its formulas, series by series."""

import pytest
import torch

from langdc.types import VideoTokens
from tests.compressors.grids import SHAPES, blocks, check, compress, grid_of, lists, noise, scenes, scores
from tests.reference.dpselect import dpselect
from tests.reference.vectors import best


def check_all(found: VideoTokens, grid, expected: tuple[list[int], list[bool]]) -> None:
    check(found, grid, expected[0])
    assert found.anchor is not None and found.anchor.tolist() == expected[1]


@pytest.mark.parametrize("per", ["frame", "patch"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 30])
def test_like_the_formulas(per: str, shape: tuple[int, int, int], window: int) -> None:
    for seed, make in enumerate((noise, scenes)):
        grid = grid_of(make(*shape, seed=seed))
        for count in {1, (shape[0] + 1) // 2, shape[0]}:
            expected = dpselect(lists(grid.values), count, window, per == "frame")
            tokens = count * shape[1] * shape[2]
            check_all(compress("dpselect", grid, tokens=tokens, per=per, window=window), grid, expected)


@pytest.mark.parametrize("window", [2, 3, 4])
def test_of_equal_moments_the_first_is_a_peak(window: int) -> None:
    """All moments of places, so that no tie is at the border of the budget; changes are 0 or 1, so most are ties."""
    grid = grid_of(blocks(9, 2, 3))
    expected = dpselect(lists(grid.values), 9, window, False)
    check_all(compress("dpselect", grid, keep=1.0, per="patch", window=window), grid, expected)


def test_the_first_frame_and_the_one_after_a_cut_by_hand() -> None:
    """Frames a a a b b b: the first, and the first of the new scene."""
    values = noise(2, 2, 3).repeat_interleave(3, 0)
    found = compress("dpselect", grid_of(values), tokens=12)
    check_all(found, grid_of(values), ([0, 1, 2, 3, 4, 5, 18, 19, 20, 21, 22, 23], [True] * 12))


def test_a_small_peak_comes_before_a_large_change_beside_a_peak() -> None:
    """Turns by 180, 150, 1, 5, 1 degrees: peaks at the first and the fourth, though the second is larger."""
    angle = torch.tensor([0, 180, 150, 1, 5, 1]).cumsum(0).deg2rad()
    grid = grid_of(torch.stack([angle.cos(), angle.sin()], -1)[:, None, None])
    check_all(compress("dpselect", grid, tokens=2), grid, ([1, 4], [True, True]))


@pytest.mark.parametrize("per", ["frame", "patch"])
@pytest.mark.parametrize("saliency", [False, True])
def test_less_than_a_frame_is_what_matters_most_to_the_encoder(per: str, saliency: bool) -> None:
    """Of what a budget of one frame keeps."""
    grid = grid_of(scenes(6, 3, 5), saliency)
    source, peak = dpselect(lists(grid.values), 1, 3, per == "frame")
    score = [one for frame in scores(grid) for one in frame]
    for tokens in (1, 7, 14):
        expected = best({s: score[s] for s in source}, tokens)
        anchors = [peak[source.index(s)] for s in expected]
        check_all(compress("dpselect", grid, tokens=tokens, per=per), grid, (expected, anchors))


def test_budgets_are_rounded_down_to_frames() -> None:
    grid = grid_of(noise(10, 2, 2))
    assert len(compress("dpselect", grid, keep=0.39)) == 3 * 4
    assert len(compress("dpselect", grid, tokens=31, per="patch")) == 7 * 4
    everything = compress("dpselect", grid, keep=1.0)
    check(everything, grid, list(range(40)))
    assert everything.anchor is not None and not torch.equal(everything.anchor, torch.ones(40, dtype=torch.bool))


@pytest.mark.parametrize("per", ["frame", "patch"])
@pytest.mark.parametrize(("frames", "keep", "count"), [(11, 0.5, 6), (5, 0.5, 2), (8, 0.4, 3), (9, 0.01, 1)])
def test_the_release_rounds_to_the_nearest_number_of_frames(per: str, frames: int, keep: float, count: int) -> None:
    """Halves to the even number, as Python does; at least one whole frame."""
    grid = grid_of(scenes(frames, 2, 3))
    expected = dpselect(lists(grid.values), count, 3, per == "frame")
    check_all(compress("dpselect", grid, keep=keep, per=per, variant="released"), grid, expected)
    tokens = max(1, round(keep * frames * 6))
    share = round(tokens / (frames * 6) * frames)
    assert len(compress("dpselect", grid, tokens=tokens, per=per, variant="released")) == 6 * max(1, share)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per": "token"}, "per='token'; allowed are 'frame', 'patch'"),
        ({"variant": "paper"}, "variant='paper'; allowed are 'fixed', 'released'"),
        ({"window": 0}, "dpselect window 0; .* 1 or more frames"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress("dpselect", grid_of(noise(2, 2, 2)), keep=0.5, **settings)
