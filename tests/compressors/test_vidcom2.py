"""VidCom2 against its formulas, token by token."""

from dataclasses import replace

import pytest
import torch

from tests.compressors.grids import SHAPES, check, compress, grid_of, lists, noise, scenes
from tests.reference.vidcom2 import vidcom2


def mild(shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Frames that differ a little. Of wild ones a single frame takes the whole lead, and what the others have of it is
    too little for float32 to say whose remainder is larger.
    """
    return noise(1, *shape[1:], 10, seed).expand(shape[0], -1, -1, -1) + 0.2 * noise(*shape, 10, seed + 1)


@pytest.mark.parametrize("variant", ["fixed", "released", "paper"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.07, 0.31, 0.83])
def test_like_the_formulas(variant: str, shape: tuple[int, int, int], keep: float) -> None:
    for seed in range(3):
        grid = grid_of(mild(shape, seed))
        wanted = max(1, int(keep * grid.tokens))
        expected = vidcom2(lists(grid.values), wanted, keep, variant)
        check(compress("vidcom2", grid, keep=keep, variant=variant), grid, expected)


@pytest.mark.parametrize("shape", [*SHAPES, (20, 2, 2)])
@pytest.mark.parametrize("keep", [0.02, 0.07, 0.31, 0.83, 1.0])
def test_as_vllm(shape: tuple[int, int, int], keep: float) -> None:
    """Its side features are looked at, too."""
    for seed in range(3):
        grid = replace(grid_of(mild(shape, seed)), extra=(noise(*shape, 4, seed + 2), noise(*shape, 3, seed + 3)))
        whole = lists(torch.cat([grid.values, *grid.extra], -1))
        tokens = max(1, int(keep * grid.tokens))
        for budget, share in (({"keep": keep}, keep), ({"tokens": tokens}, tokens / grid.tokens)):
            found = compress("vidcom2", grid, variant="vllm", **budget)
            assert found.source is not None
            assert found.source.tolist() == vidcom2(whole, tokens, share, "vllm")
            assert [len(side) for side in found.extra] == [len(found)] * 2


def test_tokens_that_do_not_go_evenly() -> None:
    grid = grid_of(mild((7, 3, 5)))
    for tokens in (1, 13, 50, 104):
        expected = vidcom2(lists(grid.values), tokens, tokens / grid.tokens, "fixed")
        check(compress("vidcom2", grid, tokens=tokens), grid, expected)
        assert len(expected) == tokens


def test_of_equals_the_earlier_stay() -> None:
    """Frames that are all one token: their scores are equal, so that a quarter of each stays, the first of each."""
    grid = grid_of(torch.eye(8)[0].expand(4, 2, 4, 8).clone())
    for variant in ("fixed", "paper"):
        check(
            compress("vidcom2", grid, keep=0.25, variant=variant), grid, [8 * t + p for t in range(4) for p in (0, 1)]
        )


def test_an_odd_frame_keeps_more() -> None:
    """By hand: the odd frame's part of the budget is 1 + 1 - 1/5 of the share, of the others 1 - 1/5."""
    values = noise(1, 4, 5, channels=16).expand(5, 4, 5, 16).clone()
    values[2] = noise(1, 4, 5, channels=16, seed=9)[0]
    found = compress("vidcom2", grid_of(values), keep=0.25, variant="paper")
    assert found.source is not None
    assert torch.bincount(found.source // 20, minlength=5).tolist() == [4, 4, 9, 4, 4]


def test_keeping_all_loses_tokens_as_released_only() -> None:
    grid = grid_of(scenes(8, 4, 4))
    check(compress("vidcom2", grid, keep=1.0), grid, list(range(grid.tokens)))
    check(compress("vidcom2", grid, keep=1.0, variant="paper"), grid, list(range(grid.tokens)))
    assert len(compress("vidcom2", grid, keep=1.0, variant="released")) < grid.tokens


def test_bad_variant() -> None:
    with pytest.raises(ValueError, match="variant='new'; allowed are 'fixed', 'released', 'paper', 'vllm'"):
        compress("vidcom2", grid_of(noise(2, 2, 2)), keep=0.5, variant="new")
