"""Writing tokens: greedy batches with their hidden states, and replies with transformers' generation options."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from langdc.conformance.prompts import KINDS, VOCABULARY, plain, prompt, read, small
from langdc.decode import greedy
from langdc.generate import Continuation
from langdc.kvcompressors import build
from langdc.language_models import load_language_model
from tests import tiny


class Collected(BaseStreamer):
    """Tokens as they are delivered."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def put(self, value: Tensor) -> None:
        self.calls.append(value.flatten().tolist())

    def end(self) -> None:
        self.calls.append([-1])


@torch.no_grad()
def stock_greedy(kind: str, count: int) -> list[int]:
    """Greedy tokens of the plain model, without a cache."""
    model, words, written = small(kind), prompt(kind), []
    embeds, positions = words.embeds, words.positions
    for _ in range(count):
        words = type(words)(embeds, positions, words.video)
        token = int(plain(kind, words).argmax())
        written.append(token)
        embeds = torch.cat([embeds, model.text_model.get_input_embeddings()(torch.tensor([token]))])
        positions = torch.cat([positions, positions.max().expand(len(positions), 1, 1) + 1], 2)
    return written


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_the_plain_models(kind: str) -> None:
    found = Continuation(read(kind)).generate(max_new_tokens=6)
    assert found.tolist() == [stock_greedy(kind, 6)]


@pytest.mark.parametrize("name", ["pivotkv", "flexreduc", "snapkv"])
def test_writing_after_eviction_goes_on_in_time(name: str) -> None:
    """Each layer's new keys stand right after those it kept; the cache grows by one a step."""
    reading = read("sections", build(name, keep=0.25))
    before = reading.keys_per_layer
    Continuation(reading).generate(max_new_tokens=5)
    assert reading.keys_per_layer == [n + 4 for n in before]
    for layer in reading.cache.layers:
        times = layer.positions[0, 0]
        assert times[-5:].diff().tolist() == [1] * 4


def test_sampling_streaming_and_stopping() -> None:
    def write(**options) -> list[list[int]]:
        torch.manual_seed(0)
        return Continuation(read("one axis", build("pivotkv", keep=0.5))).generate(max_new_tokens=8, **options).tolist()

    greedy, stream = write()[0], Collected()
    assert write(streamer=stream)[0] == greedy
    assert [call[0] for call in stream.calls[1:-1]] == greedy
    assert write(eos_token_id=greedy[2], pad_token_id=0)[0] == greedy[:3]
    drawn = write(do_sample=True, temperature=3.0, num_return_sequences=3)
    assert len({tuple(row) for row in drawn}) > 1
    assert write(do_sample=True, temperature=3.0, num_return_sequences=3) == drawn
    assert write(do_sample=True, top_k=1)[0] == greedy
    assert write(num_beams=1)[0] == greedy


def test_beams_find_what_is_likelier_than_greedy() -> None:
    def likelihood(ids: Tensor) -> float:
        reading = read("one axis", build("pivotkv", keep=0.5))
        given = iter(ids.tolist())

        def force(_, scores: Tensor) -> Tensor:
            token = next(given)
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)

        out = Continuation(reading).generate(
            max_new_tokens=len(ids), logits_processor=[force], output_logits=True, return_dict_in_generate=True
        )
        logits = torch.cat(out.logits).log_softmax(-1)
        return float(logits[torch.arange(len(ids)), ids].sum())

    beams = Continuation(read("one axis", build("pivotkv", keep=0.5))).generate(max_new_tokens=4, num_beams=6)[0]
    best = Continuation(read("one axis", build("pivotkv", keep=0.5))).generate(max_new_tokens=4)[0]
    assert likelihood(beams) >= likelihood(best) - 1e-4


def test_stop_strings_need_only_a_tokenizer() -> None:
    tokenizer = SimpleNamespace()
    with pytest.raises((ValueError, AttributeError)):
        Continuation(read("one axis")).generate(max_new_tokens=4, stop_strings=["x"], tokenizer=tokenizer)


def test_a_prompt_is_continued_once() -> None:
    reading = read("one axis")
    continuation = Continuation(reading)
    continuation.generate(max_new_tokens=3)
    with pytest.raises(ValueError, match="read it again"):
        continuation.generate(max_new_tokens=3)


def test_the_model_is_as_before_afterwards() -> None:
    model = small("one axis").text_model
    before = model.config._attn_implementation
    written = Continuation(read("one axis")).generate(max_new_tokens=3)
    assert model.config._attn_implementation == before
    assert (written < VOCABULARY).all()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return load_language_model(tiny.qwen2()).eval()


@pytest.mark.parametrize("max_tokens", [1, 5, 8, 16])
def test_the_same_ids_as_stock_generation(model, max_tokens: int) -> None:
    embeds = torch.stack(tiny.visual([6, 6, 6]))
    mask = torch.ones(3, 6, dtype=torch.long)
    stock = model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    found = greedy(model, embeds, mask, [-1], max_tokens, layer=-1)
    assert torch.stack(found.ids).tolist() == stock.tolist()


@pytest.mark.parametrize("layer", [0, 1, 3, -1])
def test_states_are_those_of_one_forward_pass(model, layer: int) -> None:
    prompt = tiny.visual([6])[0]
    found = greedy(model, prompt[None], torch.ones(1, 6, dtype=torch.long), [-1], 5, layer)
    whole = torch.cat([prompt, model.get_input_embeddings()(found.ids[0])])
    with torch.no_grad():
        states = model(inputs_embeds=whole[None], output_hidden_states=True).hidden_states[layer][0]
    torch.testing.assert_close(found.at[0], states[6:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.predicting[0], states[5:-1], atol=1e-5, rtol=1e-5)


def test_padding_on_the_left_changes_nothing(model) -> None:
    prompt = tiny.visual([6])[0]
    noise = torch.full((4, prompt.shape[1]), 9.0)
    plain = greedy(model, prompt[None], torch.ones(1, 6, dtype=torch.long), [-1], 6, 2)
    mask = torch.tensor([[0] * 4 + [1] * 6])
    padded = greedy(model, torch.cat([noise, prompt])[None], mask, [-1], 6, 2)
    assert torch.equal(padded.ids[0], plain.ids[0])
    torch.testing.assert_close(padded.at[0], plain.at[0], atol=1e-5, rtol=1e-5)


def test_every_row_stops_at_its_own_end(model) -> None:
    embeds = torch.stack(tiny.visual([6, 6, 6, 6], seed=1))
    mask = torch.ones(4, 6, dtype=torch.long)
    unbounded = greedy(model, embeds, mask, [-1], 12, -1)
    ends = [int(unbounded.ids[0][2]), int(unbounded.ids[1][5])]
    found = greedy(model, embeds, mask, ends, 12, -1)
    for row, whole, at in zip(found.ids, unbounded.ids, found.at, strict=True):
        stops = [i for i, token in enumerate(whole.tolist()) if token in ends]
        assert row.tolist() == whole.tolist()[: stops[0] if stops else None]
        assert len(at) == len(row)
    assert len(found.ids[0]) <= 2


def test_an_end_that_counts_as_said_has_the_state_that_chose_it(model) -> None:
    embeds = torch.stack(tiny.visual([6, 6, 6, 6], seed=1))
    mask = torch.ones(4, 6, dtype=torch.long)
    unbounded = greedy(model, embeds, mask, [-1], 12, 2)
    said, silent = int(unbounded.ids[0][2]), int(unbounded.ids[1][5])
    for max_tokens in (12, 2):
        found = greedy(model, embeds, mask, [said, silent], max_tokens, 2, counted_ends=[said])
        for row, whole, states, chosen in zip(
            found.ids, unbounded.ids, found.predicting, unbounded.predicting, strict=True
        ):
            counted = len(row) < max_tokens and int(whole[len(row)]) == said
            assert len(states) == len(row) + counted
            torch.testing.assert_close(states, chosen[: len(states)], atol=1e-5, rtol=1e-5)
        assert [len(row) for row in found.at] == [len(row) for row in found.ids]
        assert (len(found.predicting[0]) > len(found.ids[0])) == (max_tokens == 12)
