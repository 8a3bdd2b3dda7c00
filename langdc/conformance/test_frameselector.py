"""What every frame selector promises. Letters: T frames."""

import pytest
import torch

from langdc import devices
from langdc.conformance.candidates import Candidate
from langdc.types import Frames

QUESTION = "what colour is the ring ?"


def clip(frames: int = 24, seed: int = 0) -> Frames:
    """Frames of noise, 3 a second, where models run."""
    pixels = torch.randint(256, (frames, 3, 48, 64), generator=torch.Generator().manual_seed(seed))
    return Frames(pixels.to(devices.named("auto"), torch.uint8), torch.arange(frames) / 3)


class TestFrameSelector:
    """Promises of every frame selector."""

    def test_it_says_what_it_sees(self, frame_candidate: Candidate) -> None:
        made = frame_candidate.make()
        assert made.fps > 0 and made.most >= 1 and made.side >= 1

    @pytest.mark.parametrize("frames", [1, 2, 24, 45])
    @pytest.mark.parametrize("budget", [1, 2, 7, 24, 60])
    def test_some_frames_in_their_order(self, frame_candidate: Candidate, frames: int, budget: int) -> None:
        """Each once, at least one, and no more than the budget."""
        places = frame_candidate.make().select(clip(frames), QUESTION, budget)
        assert places.ndim == 1 and not places.is_floating_point() and places.dtype != torch.bool
        assert 1 <= len(places) <= min(budget, frames) and (places.diff() > 0).all()
        assert int(places[0]) >= 0 and int(places[-1]) < frames

    def test_the_same_again_and_inputs_untouched(self, frame_candidate: Candidate) -> None:
        shown, made = clip(), frame_candidate.make()
        first = made.select(shown, QUESTION, 7)
        made.select(clip(9, seed=1), "how many ?", 4)  # leaves no trace
        for again in (made, frame_candidate.make()):
            assert torch.equal(again.select(shown, QUESTION, 7), first)
        assert torch.equal(shown.pixels, clip().pixels) and torch.equal(shown.seconds, clip().seconds)

    def test_a_blind_one_looks_at_nothing(self, frame_candidate: Candidate) -> None:
        made = frame_candidate.make()
        if not made.blind:
            pytest.skip("looks at frames or the question")
        assert torch.equal(made.select(clip(), QUESTION, 7), made.select(clip(seed=1), "how many ?", 7))
