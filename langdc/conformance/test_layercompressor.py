"""What every layer compressor promises. The prompts' models have 3 layers: budgets are 0.75 and more."""

import pytest
import torch

from langdc.conformance.candidates import Candidate
from langdc.conformance.prompts import FRAME, FRAMES, KINDS, LAYERS, QUESTION, TEXT, plain, prompt, read, small
from langdc.prefill import PrefillOutput

TOKENS = FRAMES * FRAME


def in_one_piece(kind: str, compressor, words=None, **settings) -> PrefillOutput:
    """Read a prompt whose videos come at once."""
    return read(kind, None, words, layers=compressor, chunk_tokens=None, **settings)


class TestLayerCompressor:
    """Promises of every layer compressor."""

    @pytest.mark.parametrize("budget", [{"keep": 1.0}, {"keep": None, "tokens": TOKENS}])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_budget_that_covers_the_video_changes_nothing(
        self, layer_candidate: Candidate, kind: str, budget: dict
    ) -> None:
        """The stock model's logits bit for bit, every key kept."""
        found = in_one_piece(kind, layer_candidate.make(**budget))
        assert torch.equal(found.logits, plain(kind)) and not found.scoring_flops
        assert found.keys_per_layer == [TEXT + TOKENS + QUESTION] * LAYERS

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("budget", [{"keep": 0.75}, {"keep": 0.9}, {"keep": None, "tokens": 40}])
    def test_no_more_goes_on_than_the_budget_says(self, layer_candidate: Candidate, kind: str, budget: dict) -> None:
        """On average over layers; rows only leave, text stays, and each keeps its position."""
        words = prompt(kind)
        found = in_one_piece(kind, layer_candidate.make(**budget), words)
        most = budget.get("tokens") or budget["keep"] * TOKENS
        kept = [keys - TEXT - QUESTION for keys in found.keys_per_layer]
        assert 0.8 * most <= sum(kept) / LAYERS <= most + 1e-6 and torch.isfinite(found.logits).all()
        before, text = set(range(len(words.embeds))), set((~words.video).nonzero()[:, 0].tolist())
        for layer, rows in zip(found.cache.layers, found.kept_rows, strict=True):
            assert (rows.diff() > 0).all() and text <= set(rows.tolist()) <= before
            assert layer.positions is not None and torch.equal(layer.positions, words.positions[:, :, rows])
            before = set(rows.tolist())

    def test_a_budget_is_met_or_refused(self, layer_candidate: Candidate) -> None:
        try:
            found = in_one_piece("sections", layer_candidate.make(keep=0.2))
        except ValueError as error:
            assert "budget" in str(error)
        else:
            assert sum(found.keys_per_layer) / LAYERS - TEXT - QUESTION <= 0.2 * TOKENS + 1e-6

    def test_the_same_again_and_inputs_untouched(self, layer_candidate: Candidate) -> None:
        words, compressor = prompt("sections"), layer_candidate.make(keep=0.75)
        before = words.embeds.clone(), words.positions.clone()
        first = in_one_piece("sections", compressor, words).logits
        in_one_piece("sections", compressor, prompt("sections", seed=3, frames=9))
        for again in (compressor, layer_candidate.make(keep=0.75)):
            assert torch.equal(in_one_piece("sections", again, words).logits, first)
        assert torch.equal(words.embeds, before[0]) and torch.equal(words.positions, before[1])

    def test_half_precision(self, layer_candidate: Candidate) -> None:
        words = prompt("sections")
        low = type(words)(words.embeds.bfloat16(), words.positions, words.video)
        model = small("sections", dtype=torch.bfloat16)
        assert (
            in_one_piece("sections", layer_candidate.make(keep=0.75), low, model=model).logits.dtype == torch.bfloat16
        )

    @pytest.mark.parametrize("frames", [1, FRAMES])
    def test_a_prompt_that_ends_with_its_video(self, layer_candidate: Candidate, frames: int) -> None:
        """Its last row asks, and counts as text."""
        words = prompt("sections", frames=frames, question=0)
        found = in_one_piece("sections", layer_candidate.make(keep=0.75), words)
        assert sum(found.keys_per_layer) / LAYERS <= TEXT + 1 + 0.75 * (frames * FRAME - 1) + 1e-6

    def test_two_videos_share_a_budget(self, layer_candidate: Candidate) -> None:
        words = prompt("sections")
        video = words.video.long() - 1
        video[TEXT + 2 * FRAME] = -1  # text between the videos
        video[TEXT + 2 * FRAME + 1 : TEXT + TOKENS] = 1
        two = type(words)(words.embeds, words.positions, video)
        found = in_one_piece("sections", layer_candidate.make(keep=0.75), two)
        assert sum(found.keys_per_layer) / LAYERS <= TEXT + 1 + QUESTION + 0.75 * (TOKENS - 1) + 1e-6
        assert all(TEXT + 2 * FRAME in rows.tolist() for rows in found.kept_rows)

    def test_chunks_of_a_video_share_a_budget(self, layer_candidate: Candidate) -> None:
        for budget in ({"keep": 0.8}, {"keep": None, "tokens": round(0.8 * TOKENS)}):
            found = read("sections", None, layers=layer_candidate.make(**budget))
            # the last row of each chunk stays
            assert sum(found.keys_per_layer) / LAYERS <= TEXT + QUESTION + 0.8 * TOKENS + 3
