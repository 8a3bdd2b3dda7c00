"""What every KV compressor promises."""

from typing import Any

import pytest
import torch
from torch import Tensor

from langdc.conformance.candidates import Candidate
from langdc.conformance.prompts import FRAME, FRAMES, KINDS, LAYERS, QUESTION, TEXT, plain, prompt, read, small
from langdc.generate import Continuation
from langdc.prefill import PrefillOutput

TOKENS, REPLY = FRAMES * FRAME, 6


def reply(reading: PrefillOutput, **options: Any) -> Tensor:
    """The logits [n,V] of a greedy reply."""
    given = {"max_new_tokens": REPLY, "do_sample": False, "eos_token_id": [], "pad_token_id": 0, **options}
    return torch.cat(Continuation(reading).generate(output_logits=True, return_dict_in_generate=True, **given).logits)


class TestKVCompressor:
    """Promises of every KV compressor that drops keys of a prompt."""

    @pytest.fixture(autouse=True)
    def _drops(self, kv_candidate: Candidate) -> None:
        if kv_candidate.make().decoding:
            pytest.skip("it chooses what replies read, and is held to what these promise")

    @pytest.mark.parametrize("kind", KINDS[:2])
    @pytest.mark.parametrize("keep", [0.1, 0.6])
    def test_no_more_is_kept_than_the_budget_says(self, kv_candidate: Candidate, kind: str, keep: float) -> None:
        """On average over layers; one token per chunk and layer is always kept, and 1 % (in two chunks of 16: none)."""
        words = prompt(kind)
        found = read(kind, kv_candidate.make(keep=keep), words)
        kept = [keys - TEXT - QUESTION for keys in found.keys_per_layer]
        assert all(0 < number <= TOKENS for number in kept)
        assert sum(kept) / LAYERS <= max(keep * TOKENS + 1e-6, 3)
        assert sum(kept) / LAYERS >= 0.6 * keep * TOKENS
        assert torch.isfinite(found.logits).all()

    @pytest.mark.parametrize("budget", [{"keep": 1.0}, {"tokens": TEXT + TOKENS + QUESTION}, {"tokens": 10_000}])
    def test_a_budget_that_covers_the_prompt_changes_nothing(self, kv_candidate: Candidate, budget: dict) -> None:
        """The stock model's logits, every key kept."""
        for kind in KINDS:
            found = read(kind, kv_candidate.make(**{"keep": None, **budget}))
            torch.testing.assert_close(found.logits, plain(kind), atol=1e-4, rtol=1e-4)
            assert found.keys_per_layer == [TEXT + TOKENS + QUESTION] * LAYERS

    def test_the_same_again_and_inputs_untouched(self, kv_candidate: Candidate) -> None:
        words, compressor = prompt("sections"), kv_candidate.make()
        before = words.embeds.clone(), words.positions.clone()
        first, again, other = (read("sections", c, words) for c in (compressor, compressor, kv_candidate.make()))
        assert torch.equal(first.logits, again.logits) and torch.equal(first.logits, other.logits)
        assert torch.equal(words.embeds, before[0]) and torch.equal(words.positions, before[1])

    def test_another_prompt_in_between_leaves_no_trace(self, kv_candidate: Candidate) -> None:
        compressor = kv_candidate.make()
        first = read("sections", compressor).logits
        read("sections", compressor, prompt("sections", seed=3, frames=9))
        assert torch.equal(read("sections", compressor).logits, first)

    def test_memory_is_really_freed(self, kv_candidate: Candidate) -> None:
        whole, found = read("one axis").cache, read("one axis", kv_candidate.make()).cache
        held = [t for layer in found.layers for t in (layer.keys, layer.values) if t is not None]
        assert found.held_bytes == sum(t.numel() * t.element_size() for t in held)
        assert found.held_bytes / whole.held_bytes == pytest.approx(sum(found.lengths) / sum(whole.lengths))

    def test_kept_rows_are_ascending_old_ones_included(self, kv_candidate: Candidate) -> None:
        """Rows index the layer's whole cache; text is never dropped."""
        compressor, seen = kv_candidate.make(), []
        inner = compressor.kept

        def kept(chunk) -> list[Tensor]:
            rows = inner(chunk)
            seen.append((chunk, rows))
            return rows

        compressor.kept = kept
        read("interleaved", compressor)
        assert len(seen) == 3
        for chunk, rows in seen:
            assert len(rows) == LAYERS
            for of_layer, past in zip(rows, chunk.past, strict=True):
                assert (of_layer.diff() > 0).all()
                assert of_layer.min() >= 0 and of_layer.max() < past + len(chunk)
                assert (of_layer[..., :TEXT] == torch.arange(TEXT)).all()

    def test_half_precision(self, kv_candidate: Candidate) -> None:
        words = prompt("sections")
        low = type(words)(words.embeds.bfloat16(), words.positions, words.video)
        found = read("sections", kv_candidate.make(), low, model=small("sections", dtype=torch.bfloat16))
        keys = found.cache.layers[0].keys
        assert found.logits.dtype == torch.bfloat16
        assert keys is not None and keys.dtype == torch.bfloat16

    def test_one_frame_and_one_token(self, kv_candidate: Candidate) -> None:
        found = read("sections", kv_candidate.make(keep=0.5), prompt("sections", frames=1))
        assert all(TEXT + QUESTION < keys <= TEXT + QUESTION + FRAME for keys in found.keys_per_layer)
        read("sections", kv_candidate.make(), chunk_tokens=1, frame_tokens=1)


class TestDecodingKVCompressor:
    """Promises of every KV compressor that chooses what replies read."""

    @pytest.fixture(autouse=True)
    def _chooses(self, kv_candidate: Candidate) -> None:
        if not kv_candidate.make().decoding:
            pytest.skip("it drops keys of the prompt, and is held to what these promise")

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_prompt_is_the_stock_models_and_all_keys_are_held(self, kv_candidate: Candidate, kind: str) -> None:
        found, whole = read(kind, kv_candidate.make(keep=0.6)), read(kind, chunk_tokens=None)
        assert torch.equal(found.logits, whole.logits)
        assert found.keys_per_layer == whole.keys_per_layer and found.cache.held_bytes == whole.cache.held_bytes
        assert not torch.allclose(reply(found), reply(whole), atol=1e-3)

    @pytest.mark.parametrize("budget", [{"keep": 1.0}, {"tokens": TEXT + TOKENS + QUESTION}, {"tokens": 10_000}])
    def test_a_budget_that_covers_the_prompt_changes_nothing(self, kv_candidate: Candidate, budget: dict) -> None:
        """Also of the reply, bit for bit."""
        for kind in KINDS:
            found = read(kind, kv_candidate.make(**{"keep": None, **budget}))
            assert found.steps is None
            assert torch.equal(reply(found), reply(read(kind, chunk_tokens=None)))

    @pytest.mark.parametrize("keep", [0.6, 0.9])
    def test_a_token_reads_all_text_and_of_the_video_what_the_budget_says(
        self, kv_candidate: Candidate, keep: float
    ) -> None:
        """On average over layers; rows are ascending, the token's own key is the last."""
        found = read("sections", kv_candidate.make(keep=keep))
        assert found.steps is not None
        compressor, seen = found.steps.compressor, []
        inner = compressor.step

        def step(layer: int, query: Tensor, key: Tensor) -> Tensor | None:
            rows = inner(layer, query, key)
            keys = torch.arange(key.shape[2])
            read = keys if rows is None else rows
            seen.append(int(((read >= TEXT) & (read < TEXT + TOKENS)).sum()))
            assert (read.diff() > 0).all() and set(keys[:TEXT].tolist()) <= set(read.tolist())
            assert set(keys[TEXT + TOKENS :].tolist()) <= set(read.tolist())
            return rows

        compressor.step = step
        reply(found)
        assert len(seen) == LAYERS * (REPLY - 1)
        assert 0.6 * keep * TOKENS <= sum(seen) / len(seen) <= keep * TOKENS + 1e-6
        assert found.steps.unread == LAYERS * (REPLY - 1) * TOKENS - sum(seen)

    def test_another_prompt_in_between_leaves_no_trace(self, kv_candidate: Candidate) -> None:
        """Nor does one that is read before this one is continued."""
        compressor = kv_candidate.make(keep=0.6)
        first = reply(read("sections", compressor))
        later = read("sections", compressor)
        reply(read("sections", compressor, prompt("sections", seed=3, frames=9)))
        assert torch.equal(reply(later), first) and torch.equal(reply(read("sections", compressor)), first)

    def test_half_precision_and_one_frame(self, kv_candidate: Candidate) -> None:
        words = prompt("sections", frames=1)
        low = type(words)(words.embeds.bfloat16(), words.positions, words.video)
        found = read("sections", kv_candidate.make(keep=0.6), low, model=small("sections", dtype=torch.bfloat16))
        keys = found.cache.layers[0].keys
        assert torch.isfinite(reply(found)).all() and keys is not None and keys.dtype == torch.bfloat16

    def test_several_rows_are_refused(self, kv_candidate: Candidate) -> None:
        with pytest.raises(ValueError, match="Set num_beams and num_return_sequences to 1"):
            reply(read("one axis", kv_candidate.make(keep=0.6)), num_beams=3, eos_token_id=[0])
