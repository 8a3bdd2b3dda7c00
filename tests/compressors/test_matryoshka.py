"""Matryoshka queries: the first ones suffice, and how many are used is drawn in training and chosen in use."""

import pytest
import torch

from langdc.compressors import build
from langdc.types import Context
from tests.compressors.grids import alone
from tests.compressors.test_resampler import PER_SEGMENT, STREAMS, WIDTH, features
from tests.compressors.test_resampler import make as make_resampler
from tests.reference.resampler import resampler

QUERIES = 6


def make(**settings):
    torch.manual_seed(0)
    settings = {"width": WIDTH, "streams": STREAMS, "queries": QUERIES, **settings}
    made = build("matryoshka", **settings, frames_per_segment=PER_SEGMENT)
    for name in ("queries", "frame", "row", "column", "stream"):
        getattr(made, name).weight.data *= 50
    return made.eval()


def drawn(seed: int, compressor=None) -> list[int]:
    """Tokens of each segment of two videos in training."""
    context = Context(True, generator=torch.Generator().manual_seed(seed))
    result = (compressor or make()).train()([features(7), features(2, seed=3)], context)
    return result.tokens[0].per_segment(3) + result.tokens[1].per_segment(1)


@torch.no_grad()
def test_a_query_depends_on_those_before_it_alone() -> None:
    """The last one sees all, so that it is a resampler's; one query is a resampler of one."""
    video = features(3)
    weights = {name: value.double().tolist() for name, value in make(depth=1).state_dict().items()}
    encoded = {name: grid.values.double().tolist() for name, grid in video.encoder.items()}
    found = alone(make(depth=1), video).values.double()
    for count in range(1, QUERIES + 1):
        table = weights["queries.weight"][:count]
        expected = resampler(encoded, {**weights, "queries.weight": table}, 1, 4)[-1]
        torch.testing.assert_close(found[count - 1], torch.tensor(expected).double(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_fewer_tokens_are_the_first_of_each_segment() -> None:
    video = features(8)  # three segments
    whole = alone(make(), video)
    assert len(whole) == 3 * QUERIES
    for tokens, counts in ((1, [0, 0, 1]), (3, [1, 1, 1]), (8, [2, 3, 3]), (100, [6, 6, 6])):
        found = alone(make(tokens=tokens), video)
        assert found.per_segment(3) == counts
        for segment, count in enumerate(counts):
            expected = whole.values[whole.segment == segment][:count]
            torch.testing.assert_close(found.values[found.segment == segment], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_videos_of_a_batch_have_their_own_numbers() -> None:
    compressor, videos = make(tokens=5), [features(1), features(7, seed=2), features(4, seed=4)]
    found = compressor(videos).tokens
    assert [len(tokens) for tokens in found] == [5, 5, 5]
    for together, video in zip(found, videos, strict=True):
        torch.testing.assert_close(together.values, alone(compressor, video).values, atol=1e-5, rtol=0)


def test_the_number_is_drawn_per_step_and_the_same_for_all_segments() -> None:
    for seed in range(5):
        counts = drawn(seed)
        assert len(set(counts)) == 1 and counts == drawn(seed)
    assert {drawn(seed)[0] for seed in range(40)} == set(range(1, QUERIES + 1))
    assert len(drawn(0, make(tokens=1))) == 4  # the budget is of use alone


def test_every_query_has_a_gradient_at_every_step() -> None:
    seed = next(seed for seed in range(40) if drawn(seed)[0] == 2)
    compressor = make().train()
    context = Context(True, generator=torch.Generator().manual_seed(seed))
    compressor([features(2)], context).tokens[0].values.square().sum().backward()
    gradient = compressor.queries.weight.grad
    assert gradient[:2].abs().sum() > 0
    assert torch.equal(gradient[2:], torch.zeros(QUERIES - 2, WIDTH))


def test_a_resampler_starts_it() -> None:
    """The same tensors by name, so that a trained resampler's weights fit."""
    make(queries=3).load_state_dict(make_resampler().state_dict())


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="matryoshka tokens=0; a video needs at least one token"):
        make(tokens=0)
    with pytest.raises(ValueError, match="queries=0 and depth=2 must be at least 1"):
        make(queries=0)
