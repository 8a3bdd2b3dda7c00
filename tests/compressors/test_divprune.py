"""DivPrune against its greedy rule, token by token."""

import pytest
import torch

from langdc import devices
from langdc.compressors import divprune as module
from langdc.compressors.divprune import DivPrune
from tests.compressors.grids import SHAPES, blocks, check, compress, grid_of, lists, noise, scenes
from tests.reference.divprune import divprune
from tests.reference.vectors import evenly


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.05, 0.31, 0.83, 1.0])
@pytest.mark.parametrize("make", [noise, scenes])
def test_like_the_rule(make, shape: tuple[int, int, int], keep: float) -> None:
    grid = grid_of(make(*shape))
    flat = [token for frame in lists(grid.values) for token in frame]
    wanted = max(1, int(keep * len(flat)))
    order = divprune(flat, wanted)
    check(compress("divprune", grid, keep=keep), grid, sorted(order))
    check(compress("divprune", grid, tokens=wanted), grid, sorted(order))
    assert DivPrune(keep).picks(grid.values.flatten(0, 2)[None], wanted).tolist() == [order]
    rounded = max(1, round(keep * len(flat)))
    check(compress("divprune", grid, keep=keep, variant="released"), grid, sorted(divprune(flat, rounded)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.05, 0.31, 0.83])
def test_each_frame_alone(shape: tuple[int, int, int], keep: float) -> None:
    grid = grid_of(scenes(*shape))
    frames = lists(grid.values)
    counts = evenly(max(1, int(keep * grid.tokens)), len(frames), len(frames[0]))
    expected = [
        t * len(frame) + i
        for t, (frame, count) in enumerate(zip(frames, counts, strict=True))
        for i in sorted(divprune(frame, count))
    ]
    check(compress("divprune", grid, keep=keep, per="frame"), grid, expected)


def test_copies() -> None:
    """Tokens along eight axes: one of each, then the earliest copies; as released the first token again and again."""
    grid = grid_of(blocks(3, 3, 4))
    flat = [token for frame in lists(grid.values) for token in frame]
    check(compress("divprune", grid, tokens=20), grid, sorted(divprune(flat, 20)))
    check(compress("divprune", grid, tokens=20, variant="released"), grid, sorted(divprune(flat, 20, again=True)))
    assert len(set(divprune(flat, 20))) == 20 and len(set(divprune(flat, 20, again=True))) == 8


def test_by_hand() -> None:
    """Directions at 0, 10, 30, 90 and 180 degrees: 180 is alone, then 0 is farthest from it, then 90."""
    angle = torch.tensor([0.0, 10, 30, 90, 180]).deg2rad()
    grid = grid_of(torch.stack([angle.cos(), angle.sin()], -1).view(1, 1, 5, 2))
    for tokens, expected in enumerate(([4], [0, 4], [0, 3, 4], [0, 2, 3, 4], [0, 1, 2, 3, 4]), 1):
        check(compress("divprune", grid, tokens=tokens), grid, expected)


@pytest.mark.parametrize("per", ["video", "frame"])
@pytest.mark.parametrize("size", [1, 1000, 3000])
def test_sizes_of_blocks(monkeypatch: pytest.MonkeyPatch, size: int, per: str) -> None:
    grid = grid_of(scenes(7, 3, 5).bfloat16())
    expected = compress("divprune", grid, keep=0.4, per=per).source
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", size)
    found = compress("divprune", grid, keep=0.4, per=per).source
    assert found is not None and expected is not None and found.tolist() == expected.tolist()


@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_cosines_that_are_not_held_choose_the_same(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    grid = grid_of(scenes(7, 3, 5))
    expected = compress("divprune", grid, keep=0.4, variant=variant).source
    monkeypatch.setattr(module, "HELD", 4 * 105 * 105 - 1)
    found = compress("divprune", grid, keep=0.4, variant=variant).source
    assert found is not None and expected is not None and found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "paper"}, "variant='paper'; allowed are 'fixed', 'released'"),
        ({"per": "patch"}, "per='patch'; allowed are 'video', 'frame'"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress("divprune", grid_of(noise(2, 2, 2)), keep=0.5, **settings)
