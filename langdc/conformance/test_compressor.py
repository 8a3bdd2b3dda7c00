"""What every token compressor promises."""

from dataclasses import fields, replace
from math import ceil

import pytest
import torch
from torch import Tensor

from langdc.conformance.candidates import PER_SEGMENT, Candidate
from langdc.interfaces import TokenCompressor
from langdc.types import VideoFeatures, VideoTokens


def same(one: VideoTokens, other: VideoTokens, tolerance: float = 0.0) -> None:
    """Whether all fields are equal."""
    for one_field in fields(VideoTokens):
        a, b = getattr(one, one_field.name), getattr(other, one_field.name)
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
        else:
            assert type(a) is type(b)


def grids(video: VideoFeatures) -> list[Tensor]:
    """All tensors that a compressor gets."""
    return [grid.values for grid in (*video.projected, *video.encoder.values())]


def total(video: VideoFeatures) -> int:
    """Tokens before compression."""
    return sum(grid.tokens for grid in video.projected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_have_backbone_width_the_same_type_and_segments(token_candidate: Candidate, dtype: torch.dtype) -> None:
    """Shapes and types."""
    compressor, video = token_candidate.make(), token_candidate.video(dtype=dtype)
    assert isinstance(compressor, TokenCompressor)
    found = compressor.to(dtype)(video)
    assert found.values.dtype == dtype and found.values.device == video.projected[0].values.device
    assert found.values.shape[1] == video.projected[0].values.shape[-1]
    assert 0 < len(found) <= total(video)
    assert torch.isfinite(found.values).all()
    assert found.segment.dtype == torch.long
    assert set(found.segment.tolist()) <= set(range(ceil(len(video.seconds) / PER_SEGMENT)))
    if len(video.projected) == 1:
        assert (found.segment.diff() >= 0).all()


def test_kept_tokens_have_rising_places_and_their_side_features(token_candidate: Candidate) -> None:
    """A place is in the grid, comes once and in order; what travels with tokens does."""
    compressor, video = token_candidate.make(), token_candidate.video()
    found = compressor(video)
    assert (found.source is None) != compressor.keeps_places
    if found.source is None:
        return
    assert (found.source.diff() > 0).all()
    assert int(found.source.min()) >= 0 and int(found.source.max()) < total(video)
    for number, side in enumerate(video.projected[0].extra):
        assert found.extra[number].shape == (len(found), side.shape[-1])


@pytest.mark.parametrize("keep", [0.05, 0.25, 0.5, 0.77])
def test_a_budget_is_kept(token_candidate: Candidate, keep: float) -> None:
    """No more than the budget, unless the class says that it only aims at it."""
    if not token_candidate.takes_budget:
        pytest.skip("takes no budget")
    compressor, video = token_candidate.make(keep=keep), token_candidate.video()
    if getattr(compressor, "nominal", False):
        pytest.skip("only aims at the budget")
    assert len(compressor(video)) <= ceil(keep * total(video))
    wanted = int(keep * total(video))
    by_number = token_candidate.make(keep=None, tokens=wanted)(video)
    assert len(by_number) <= wanted


@pytest.mark.parametrize("budget", [{"keep": 1.0}, {"keep": None, "tokens": 10**6}])
def test_a_budget_that_covers_the_video_changes_nothing(token_candidate: Candidate, budget: dict) -> None:
    """Everything is kept, in order, untouched."""
    if not token_candidate.takes_budget:
        pytest.skip("takes no budget")
    compressor, video = token_candidate.make(**budget), token_candidate.video()
    found = compressor(video)
    assert torch.equal(found.values, torch.cat([grid.values.flatten(0, 2) for grid in video.projected]))
    if compressor.keeps_places:
        assert torch.equal(found.source, torch.arange(total(video)))


def test_a_batch_equals_its_videos_alone(token_candidate: Candidate) -> None:
    """Neighbours in a batch change nothing."""
    compressor = token_candidate.make()
    videos = [token_candidate.video(0), token_candidate.video(1, 5), token_candidate.video(2, 8)]
    for together, video in zip(compressor.batch(videos), videos, strict=True):
        same(together, compressor(video), tolerance=1e-5)


def test_the_same_again_and_inputs_untouched(token_candidate: Candidate) -> None:
    """No state, no chance, no editing in place."""
    compressor, video = token_candidate.make(), token_candidate.video()
    before = [values.clone() for values in grids(video)]
    first = compressor(video)
    compressor(token_candidate.video(7, 9))
    same(first, compressor(video))
    assert all(torch.equal(a, b) for a, b in zip(before, grids(video), strict=True))
    same(first, token_candidate.make()(token_candidate.video()))


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_videos(token_candidate: Candidate, frames: int) -> None:
    """A picture is a video of one frame."""
    video = token_candidate.video(0, frames)
    found = token_candidate.make()(video)
    assert 0 < len(found) <= total(video)
    assert set(found.segment.tolist()) <= {0}


def test_still_videos(token_candidate: Candidate) -> None:
    """Frames that are all the same, and tokens that are."""
    video = token_candidate.video()
    still = [replace(grid, values=grid.values[:1].expand_as(grid.values).clone()) for grid in video.projected]
    flat = [replace(grid, values=torch.ones_like(grid.values)) for grid in video.projected]
    for main in (still, flat):
        found = token_candidate.make()(replace(video, projected=tuple(main)))
        assert len(found) > 0 and torch.isfinite(found.values).all()


def test_numbers_that_are_none_are_refused(token_candidate: Candidate) -> None:
    """NaN features end in an error that says so."""
    compressor = token_candidate.make()
    if not token_candidate.takes_budget:
        pytest.skip("takes no budget; learned compressors pass NaN on to their loss")
    video = token_candidate.video()
    video.projected[0].values[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        compressor(video)


@pytest.mark.parametrize("budget", [{"keep": 0}, {"keep": 1.5}, {"keep": None, "tokens": 0}, {"keep": None}])
def test_budgets_that_make_no_sense_are_refused(token_candidate: Candidate, budget: dict) -> None:
    """At once, by a ValueError."""
    if not token_candidate.takes_budget:
        pytest.skip("takes no budget")
    with pytest.raises(ValueError):
        token_candidate.make(**budget)
