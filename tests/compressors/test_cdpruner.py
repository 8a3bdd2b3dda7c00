"""CDPruner against its formulas, token by token."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from langdc.compressors import build
from langdc.conformance.test_compressor import same
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens
from tests.compressors.grids import PER_SEGMENT, SHAPES, alone, blocks, check, dice, grid_of, lists, noise, scenes
from tests.reference.cdpruner import cdpruner

MAKERS = {"noise": noise, "scenes": scenes, "ties": blocks}


def words(channels: int = 8, count: int = 5, seed: int = 3) -> Tensor:
    return torch.randn(count, channels, generator=dice(seed))


def asked(grid: FeatureGrid, question: Tensor | None, **settings) -> VideoTokens:
    """What is kept of one grid for a question."""
    compressor = build("cdpruner", **settings, frames_per_segment=PER_SEGMENT)
    return alone(compressor, VideoFeatures((grid,), {}, torch.arange(len(grid.values)) / 2, question))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.11, 0.31, 0.83, 1.0])
@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_like_the_formulas(make: str, shape: tuple[int, int, int], keep: float, variant: str) -> None:
    """Also where a frame keeps more tokens than it has channels, so that none is new any more."""
    grid = grid_of(MAKERS[make](*shape))
    wanted = max(1, int(keep * grid.tokens))
    expected = cdpruner(lists(grid.values), words().tolist(), wanted, 1 if variant == "fixed" else -1)
    check(asked(grid, words(), keep=keep, variant=variant), grid, expected)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 6, 6)])
def test_in_many_channels(shape: tuple[int, int, int]) -> None:
    grid = grid_of(noise(*shape, channels=48))
    expected = cdpruner(lists(grid.values), words(48).tolist(), int(0.6 * grid.tokens))
    check(asked(grid, words(48), keep=0.6), grid, expected)


def test_a_place_for_each_direction_by_hand() -> None:
    """Four directions, each shown by three of the twelve tokens; the question names the first: the most relevant first,
    then one of each other direction, then, as none is new any more, the most relevant of the rest.
    """
    values = torch.eye(4).repeat(3, 1).view(1, 3, 4, 4)
    question = torch.tensor([[1.0, 0.2, 0.1, 0.0]])
    for count, expected in {1: [0], 2: [0, 1], 4: [0, 1, 2, 3], 6: [0, 1, 2, 3, 4, 8]}.items():
        check(asked(grid_of(values), question, tokens=count), grid_of(values), expected)


def test_the_question_decides() -> None:
    grid = grid_of(noise(3, 4, 4))
    one, other = (asked(grid, words(seed=seed), keep=0.25).source for seed in (1, 2))
    assert one is not None and other is not None and not torch.equal(one, other)


@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_equal_relevance(variant: str) -> None:
    """Words that fit no token better than another, or tokens without length: still as many as asked for."""
    for values in (noise(2, 3, 3).mul(torch.tensor([1.0] * 4 + [0.0] * 4)), torch.zeros(2, 3, 3, 8)):
        grid = grid_of(values)
        found = asked(grid, torch.eye(8)[6:], tokens=12, variant=variant).source
        assert found is not None and len(found) == 12


def test_memory_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(scenes(7, 3, 5))
    whole = asked(grid, words(), keep=0.3)
    monkeypatch.setattr("langdc.compressors.cdpruner.at_once", lambda *_: 2)
    monkeypatch.setattr("langdc.compressors.cdpruner.frames_at_once", lambda *_: 3)
    same(whole, asked(grid, words(), keep=0.3))


@pytest.mark.parametrize("question", [None, torch.zeros(0, 8)])
def test_without_a_question(question: Tensor | None) -> None:
    with pytest.raises(ValueError, match="cdpruner needs the question asked about each video; a video has none"):
        asked(grid_of(noise(2, 2, 2)), question, keep=0.5)


def test_gradients_reach_the_kept_tokens() -> None:
    grid = grid_of(noise(2, 3, 3))
    found = asked(replace(grid, values=grid.values.requires_grad_()), words(), keep=0.5)
    found.values.sum().backward()
    assert grid.values.grad is not None and grid.values.grad.flatten(0, 2).any(1).sum() == len(found)
