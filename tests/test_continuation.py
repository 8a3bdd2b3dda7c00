"""Writing on after a reading, with transformers' generation options."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from langdc.conformance.prompts import KINDS, VOCABULARY, plain, prompt, read, small
from langdc.continuation import Continuation
from langdc.kvcompressors import build


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
    found = Continuation(read(kind)).write(max_new_tokens=6)
    assert found.tolist() == [stock_greedy(kind, 6)]


@pytest.mark.parametrize("name", ["pivotkv", "flexreduc", "snapkv"])
def test_writing_after_eviction_goes_on_in_time(name: str) -> None:
    """Each layer's new keys stand right after those it kept; the cache grows by one a step."""
    reading = read("sections", build(name, keep=0.25))
    before = reading.keys_per_layer
    Continuation(reading).write(max_new_tokens=5)
    assert reading.keys_per_layer == [n + 4 for n in before]
    for layer in reading.cache.layers:
        times = layer.positions[0, 0]
        assert times[-5:].diff().tolist() == [1] * 4


def test_sampling_streaming_and_stopping() -> None:
    def write(**options) -> list[list[int]]:
        torch.manual_seed(0)
        return Continuation(read("one axis", build("pivotkv", keep=0.5))).write(max_new_tokens=8, **options).tolist()

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

        out = Continuation(reading).write(
            max_new_tokens=len(ids), logits_processor=[force], output_logits=True, return_dict_in_generate=True
        )
        logits = torch.cat(out.logits).log_softmax(-1)
        return float(logits[torch.arange(len(ids)), ids].sum())

    beams = Continuation(read("one axis", build("pivotkv", keep=0.5))).write(max_new_tokens=4, num_beams=6)[0]
    greedy = Continuation(read("one axis", build("pivotkv", keep=0.5))).write(max_new_tokens=4)[0]
    assert likelihood(beams) >= likelihood(greedy) - 1e-4


def test_stop_strings_need_only_a_tokenizer() -> None:
    tokenizer = SimpleNamespace()
    with pytest.raises((ValueError, AttributeError)):
        Continuation(read("one axis")).write(max_new_tokens=4, stop_strings=["x"], tokenizer=tokenizer)


def test_a_reading_is_written_on_once() -> None:
    reading = read("one axis")
    continuation = Continuation(reading)
    continuation.write(max_new_tokens=3)
    with pytest.raises(ValueError, match="read the prompt again"):
        continuation.write(max_new_tokens=3)


def test_the_model_is_as_before_afterwards() -> None:
    model = small("one axis").text_model
    before = model.config._attn_implementation
    written = Continuation(read("one axis")).write(max_new_tokens=3)
    assert model.config._attn_implementation == before
    assert (written < VOCABULARY).all()
