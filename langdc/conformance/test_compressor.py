"""What every token compressor promises."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor

from langdc.conformance.candidates import PER_SEGMENT, Candidate, record
from langdc.interfaces import TokenCompressor
from langdc.types import Context, VideoFeatures, VideoTokens

TOKENS = frozenset({"tokens"})


def same(one: VideoTokens, other: VideoTokens, tolerance: float = 0.0) -> None:
    """Fail unless all fields are equal."""
    for each in fields(VideoTokens):
        a, b = getattr(one, each.name), getattr(other, each.name)
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
        else:
            assert type(a) is type(b)


def alone(compressor: TokenCompressor, video: VideoFeatures) -> VideoTokens:
    """The tokens of one video."""
    return compressor([video]).tokens[0]


def _training(compressor: TokenCompressor, videos: list[VideoFeatures], **changes: Any) -> Context:
    """A context half way through training, with the compressor's targets; tokens and all losses are wanted."""
    records = [record(len(video.seconds), compressor.frames_per_segment, seed) for seed, video in enumerate(videos)]
    given = [compressor.targets(each) for each in records]
    targets = {name: [target[name] for target in given] for name in given[0]}
    generator = torch.Generator().manual_seed(1)
    return replace(Context(True, 0.5, generator, targets, TOKENS | compressor.losses), **changes)


def _three(candidate: Candidate) -> list[VideoFeatures]:
    """Videos of different lengths and sizes."""
    return [candidate.video(0), candidate.video(1, 5, size=(4, 5)), candidate.video(2, 8, size=(5, 3))]


def _total(video: VideoFeatures) -> int:
    """Tokens before compression."""
    return sum(grid.tokens for grid in video.projected)


@contextmanager
def _calls(module: torch.nn.Module) -> Iterator[Counter[str]]:
    """How often each part of a module is called."""
    found: Counter[str] = Counter()
    handles = [
        part.register_forward_hook(lambda *_, name=name: found.update([name])) for name, part in module.named_modules()
    ]
    yield found
    for handle in handles:
        handle.remove()


class TestTokenCompressor:
    """Promises of every token compressor."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_tokens_have_backbone_width_the_same_type_and_segments(
        self, token_candidate: Candidate, dtype: torch.dtype
    ) -> None:
        compressor, video = token_candidate.make(), token_candidate.video(dtype=dtype)
        assert isinstance(compressor, TokenCompressor)
        found = alone(compressor.to(dtype), video)
        assert found.values.dtype == dtype and found.values.device == video.projected[0].values.device
        assert found.values.shape[1] == video.projected[0].values.shape[-1]
        assert 0 < len(found) <= _total(video)
        assert torch.isfinite(found.values).all()
        assert found.segment.dtype == torch.long
        assert set(found.segment.tolist()) <= set(range(ceil(len(video.seconds) / PER_SEGMENT)))
        if len(video.projected) == 1:
            assert (found.segment.diff() >= 0).all()

    def test_kept_tokens_have_rising_positions_and_their_side_features(self, token_candidate: Candidate) -> None:
        """Positions are in the grid and ascend; side features travel with their tokens, or there are none."""
        compressor, video = token_candidate.make(), token_candidate.video()
        found = alone(compressor, video)
        for number, side in enumerate(video.projected[0].extra if found.source is not None or found.extra else ()):
            assert found.extra[number].shape == (len(found), side.shape[-1])
        if found.source is not None:
            assert (found.source.diff() > 0).all()
            assert int(found.source.min()) >= 0 and int(found.source.max()) < _total(video)

    def test_a_batch_equals_its_videos_alone(self, token_candidate: Candidate) -> None:
        """Neighbours in a batch change nothing, whatever their lengths and sizes."""
        compressor, videos = token_candidate.make(), _three(token_candidate)
        for together, video in zip(compressor(videos).tokens, videos, strict=True):
            same(together, alone(compressor, video), tolerance=1e-5)

    def test_the_same_again_and_inputs_untouched(self, token_candidate: Candidate) -> None:
        """It keeps no state, draws nothing and edits nothing in place."""
        compressor, video = token_candidate.make(), token_candidate.video()
        given = [grid.values for grid in (*video.projected, *video.encoder.values())]
        before = [values.clone() for values in given]
        first = alone(compressor, video)
        alone(compressor, token_candidate.video(7, 9))
        same(first, alone(compressor, video))
        assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
        same(first, alone(token_candidate.make(), token_candidate.video()))

    @pytest.mark.parametrize("frames", [1, 2, 3])
    def test_short_videos(self, token_candidate: Candidate, frames: int) -> None:
        video = token_candidate.video(0, frames)
        found = alone(token_candidate.make(), video)
        assert 0 < len(found) <= _total(video)
        assert set(found.segment.tolist()) <= {0}

    def test_still_videos(self, token_candidate: Candidate) -> None:
        """Frames that are all the same, and tokens that are."""
        video = token_candidate.video()
        still = [replace(grid, values=grid.values[:1].expand_as(grid.values).clone()) for grid in video.projected]
        flat = [replace(grid, values=torch.ones_like(grid.values)) for grid in video.projected]
        for main in (still, flat):
            found = alone(token_candidate.make(), replace(video, projected=tuple(main)))
            assert len(found) > 0 and torch.isfinite(found.values).all()

    def test_only_what_is_wanted_is_returned(self, token_candidate: Candidate) -> None:
        """Losses are declared, wanted, and a scalar with a count each; tokens come only if wanted."""
        compressor, videos = token_candidate.make().train(), _three(token_candidate)
        everything = TOKENS | compressor.losses
        for wanted in (TOKENS, compressor.losses, everything):
            result = compressor(videos, _training(compressor, videos, wanted=wanted))
            assert len(result.tokens) == (len(videos) if "tokens" in wanted else 0)
            assert set(result.losses) <= compressor.losses & wanted
            for loss, count in result.losses.values():
                assert loss.ndim == 0 and torch.isfinite(loss) and count > 0
        if any(parameter.requires_grad for parameter in compressor.parameters()):
            assert set(result.losses) == compressor.losses

    def test_losses_of_a_batch_are_sums(self, token_candidate: Candidate) -> None:
        """Losses and counts of a batch are those of its videos, added up; for losses without random numbers."""
        compressor, videos = token_candidate.make(), _three(token_candidate)
        context = _training(compressor, videos, training=False, generator=None)
        together = compressor(videos, context).losses
        single = [
            compressor([video], replace(context, targets={name: [t[i]] for name, t in context.targets.items()})).losses
            for i, video in enumerate(videos)
        ]
        for name, (loss, count) in together.items():
            assert count == sum(losses[name][1] for losses in single)
            torch.testing.assert_close(loss, sum(losses[name][0] for losses in single), atol=1e-3, rtol=1e-4)

    def test_gradients_reach_every_weight_that_is_trained(self, token_candidate: Candidate) -> None:
        """By the tokens and the compressor's own losses together; a loss may be the only way to a weight."""
        compressor, videos = token_candidate.make().train(), _three(token_candidate)
        trained = {name for name, parameter in compressor.named_parameters() if parameter.requires_grad}
        if not trained:
            pytest.skip("has nothing to train")
        result, noise = compressor(videos, _training(compressor, videos)), torch.Generator().manual_seed(3)
        parts = [(tokens.values * torch.randn(tokens.values.shape, generator=noise)).sum() for tokens in result.tokens]
        torch.stack([*parts, *(loss / count for loss, count in result.losses.values())]).sum().backward()
        assert {name for name, parameter in compressor.named_parameters() if parameter.grad is not None} == trained

    def test_training_draws_from_the_generator(self, token_candidate: Candidate) -> None:
        """The same seed gives the same tokens and losses; the global generator is left alone."""
        compressor, videos = token_candidate.make().train(), _three(token_candidate)
        before = torch.get_rng_state()
        wanted = TOKENS | compressor.losses
        first, again = (compressor(videos, _training(compressor, videos, wanted=wanted)) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        for one, other in zip(first.tokens, again.tokens, strict=True):
            same(one, other)
        for name, (loss, count) in first.losses.items():
            assert torch.equal(loss, again.losses[name][0]) and count == again.losses[name][1]

    def test_a_blank_video_makes_the_same_calls(self, token_candidate: Candidate) -> None:
        """Ranks whose samples show no video compress one without targets, and must call the same modules (ZeRO-3)."""
        compressor = token_candidate.make().train()
        video, blank = token_candidate.video(), token_candidate.video(0, 2, size=(2, 2))
        context = _training(compressor, [video], synced=True)
        with _calls(compressor) as expected:
            compressor([video], context)
        nothing = {name: [None] for name in context.targets}
        with _calls(compressor) as made:
            compressor([blank], replace(context, targets=nothing, generator=torch.Generator().manual_seed(1)))
        assert made == expected


class TestBudget:
    """Promises of compressors that have the keywords `keep` and `tokens`."""

    @pytest.fixture(autouse=True)
    def _takes_budget(self, token_candidate: Candidate) -> None:
        if not token_candidate.takes_budget:
            pytest.skip("takes no budget")

    @pytest.mark.parametrize("keep", [0.05, 0.25, 0.5, 0.77])
    def test_a_budget_is_kept(self, token_candidate: Candidate, keep: float) -> None:
        compressor, video = token_candidate.make(keep=keep), token_candidate.video()
        if getattr(compressor, "nominal", False):
            pytest.skip("only aims at the budget")
        assert len(alone(compressor, video)) <= ceil(keep * _total(video))
        wanted = int(keep * _total(video))
        assert len(alone(token_candidate.make(keep=None, tokens=wanted), video)) <= wanted

    @pytest.mark.parametrize("budget", [{"keep": 1.0}, {"keep": None, "tokens": 10**6}])
    def test_a_budget_that_covers_the_video_changes_nothing(self, token_candidate: Candidate, budget: dict) -> None:
        video = token_candidate.video()
        found = alone(token_candidate.make(**budget), video)
        assert torch.equal(found.values, torch.cat([grid.values.flatten(0, 2) for grid in video.projected]))
        if found.source is not None:
            assert torch.equal(found.source, torch.arange(_total(video)))

    def test_nan_features_are_refused(self, token_candidate: Candidate) -> None:
        """Learned compressors, which have no budget, pass NaN on to their loss."""
        compressor = token_candidate.make()
        video = token_candidate.video()
        video.projected[0].values[0, 0, 0, 0] = torch.nan
        with pytest.raises(ValueError, match="not finite"):
            alone(compressor, video)

    @pytest.mark.parametrize("scale", [1e30, 1e-30])
    def test_values_whose_squares_are_infinite_or_zero(self, token_candidate: Candidate, scale: float) -> None:
        compressor, video = token_candidate.make(), token_candidate.video()
        grids = tuple(replace(grid, values=grid.values * scale) for grid in video.projected)
        found = alone(compressor, replace(video, projected=grids))
        assert len(found) and found.values.isfinite().all()
        assert found.source is None or (found.source.diff() > 0).all()

    @pytest.mark.parametrize("budget", [{"keep": 0}, {"keep": 1.5}, {"keep": None, "tokens": 0}, {"keep": None}])
    def test_budgets_that_make_no_sense_are_refused(self, token_candidate: Candidate, budget: dict) -> None:
        with pytest.raises(ValueError):
            token_candidate.make(**budget)
