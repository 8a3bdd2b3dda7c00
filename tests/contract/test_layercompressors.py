"""What every layer compressor of the zoo promises, with other sites beside it, and against the whole stock model."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from langdc.conformance.candidates import Candidate
from langdc.conformance.prompts import FRAME, FRAMES, KINDS, LAYERS, QUESTION, TEXT, plain, prompt, read, small
from langdc.conformance.test_layercompressor import *  # noqa: F403 - the same tests for our own members
from langdc.conformance.test_layercompressor import in_one_piece
from langdc.generate import Continuation
from langdc.interfaces import LayerCompressor, Rows
from langdc.kvcompressors import build as build_kv
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import build, layercompressors
from tests.hidden import Noted, all_but

TOKENS = FRAMES * FRAME
VARIANTS: dict[str, dict] = {
    "fastv": {},
    "pyramiddrop": {},
    "sparsevlm": {},
    "sparsevlm, dropped": {"recycle": False},
    "dart": {},
    "dart, released": {"variant": "released"},
    "holitom_inner": {},
    "holitom_inner, early": {"layer": 1},
    "framefusion": {},
    "framefusion, merging": {"similarity": 0.15, "asking": 4},
    "framefusion, merging alone": {"similarity": 0.0},
}
CANDIDATES = [Candidate(name, layercompressors.get(name.split(",")[0]), given) for name, given in VARIANTS.items()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layer_candidate" in metafunc.fixturenames:
        metafunc.parametrize("layer_candidate", CANDIDATES, ids=str)


def test_every_member_is_held_to_the_contract() -> None:
    assert {variant.split(",")[0] for variant in VARIANTS} == set(layercompressors.names())


@torch.no_grad()
def slowly(kind: str, embeds: Tensor, positions: Tensor, kept, length: int, compressor: Noted) -> Tensor:
    """The logits [n,V] of the whole stock model, with the rows hidden that no layer of the compressed one kept."""
    model = small(kind)
    given = positions if len(positions) > 1 else positions[0]
    later, merged = len(embeds) - length, compressor.merged
    with all_but(model.text_model, kept, length, later, merged, compressor.halfway):
        states = model.text_model(inputs_embeds=embeds[None], position_ids=given, use_cache=False).last_hidden_state
    return model.lm_head(states[0])


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_reply_are_those_of_the_stock_model_with_rows_hidden(layer_candidate: Candidate, kind: str) -> None:
    """The caches of all layers, their positions, and the reply after them."""
    words, compressor = prompt(kind), Noted(layer_candidate.make(keep=0.75))
    found = in_one_piece(kind, compressor, words)
    kept, length = found.kept_rows, len(words.embeds)
    expected = slowly(kind, words.embeds, words.positions, kept, length, compressor)
    torch.testing.assert_close(found.logits, expected[-1:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found.logits, plain(kind, words), atol=1e-2)
    first, step = found.logits, found.next_position
    written = Continuation(found).generate(
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=[],
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = written.sequences[0]
    replied = small(kind).text_model.get_input_embeddings()(ids)
    later = torch.cat([words.positions, step + torch.arange(len(ids))], 2)
    expected = slowly(kind, torch.cat([words.embeds, replied]), later, kept, length, compressor)
    assert torch.equal(written.logits[0], first)
    torch.testing.assert_close(torch.cat(written.logits), expected[-6:-1], atol=1e-4, rtol=1e-4)


CACHES = {name: {} for name in kvcompressors.names() if not kvcompressors.get(name).decoding} | {
    "random, adaptive": {"allocator": "adaptive"},
    "snapkv, question": {"scorer": "question", "allocator": "adaptive"},
    "pivotkv, question": {"scorer": "question", "allocator": {"name": "pyramid", "beta": 4}},
    "flexreduc, paper": {"variant": "paper"},
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", KINDS[:2])
def test_with_every_compressor_of_the_cache(layer_candidate: Candidate, cache: str, kind: str) -> None:
    """The budget of the cache is kept, and every key is where its row of the prompt is."""
    name, settings = cache.split(",")[0], {"keep": 0.5, **CACHES[cache]}
    plain_kv = build_kv(name, **settings)
    if plain_kv.continuous:
        with pytest.raises(ValueError, match=r"moves keys together in time.*Set its compact_positions to false"):
            read(kind, plain_kv, layers=layer_candidate.make(keep=0.8))
        plain_kv = build_kv(name, **settings, compact_positions=False)
    words = prompt(kind)
    found = read(kind, plain_kv, words, layers=layer_candidate.make(keep=0.8))
    kept = [keys - TEXT - QUESTION for keys in found.keys_per_layer]
    assert 0 < sum(kept) / LAYERS <= 0.5 * TOKENS + 1e-6 and torch.isfinite(found.logits).all()
    for layer, rows in zip(found.cache.layers, found.kept_rows, strict=True):
        assert (rows.diff() > 0).all() and rows.max() < len(words.embeds)
        of = rows if rows.ndim > 1 else rows[None]
        assert torch.equal(layer.positions, words.positions[:, 0, of])


@pytest.mark.parametrize("name", ["fastv, early", "framefusion, merging"])
def test_streaming_keeps_the_first_and_the_last_that_came_to_each_layer(name: str) -> None:
    settings = VARIANTS.get(name, {"layer": 1})
    layers, words = build(name.split(",")[0], keep=0.75, **settings), prompt("sections")
    came = read("sections", build_kv("random", keep=0.999), words, layers=layers).kept_rows
    kept = read("sections", build_kv("streaming", keep=0.4, sinks=4), words, layers=layers).kept_rows
    video = range(TEXT, TEXT + TOKENS)
    for before, rows in zip(came, kept, strict=True):
        first, left = ([row for row in these.tolist() if row in video] for these in (before, rows))
        assert left[:4] == first[:4] and len(left) == int(0.4 * TOKENS)


def test_streaming_beside_layers_reads_a_last_chunk_of_one_row() -> None:
    """Which is the row that asks, so nothing is dropped of it, and layers go on holding different keys."""
    layers, words = build("fastv", keep=0.6, layer=1), prompt("sections")
    words = replace(words, embeds=words.embeds[: TEXT + TOKENS], positions=words.positions[..., : TEXT + TOKENS],
                    video=words.video[: TEXT + TOKENS])  # fmt: skip
    kv = build_kv("streaming", keep=0.5)
    found = read("sections", kv, words, layers=layers, chunk_tokens=TOKENS - 1)
    assert [len(rows) for rows in found.kept_rows] == found.keys_per_layer == [len(held) for held in kv._is_video]
    assert all(rows[-1] == TEXT + TOKENS - 1 for rows in found.kept_rows)


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="Did you mean 'fastv'"):
        build("fast_v", keep=0.5)
    with pytest.raises(ValueError, match="Did you mean 'recycle'"):
        build("sparsevlm", keep=0.5, recycled=False)


class Odd(LayerCompressor):
    """Says what it must not."""

    def __init__(self, layers, places) -> None:
        self.layers, self.places = layers, places

    def begin(self, rows: Rows):
        return self.layers

    def keep(self, layer: int, rows: Rows) -> Rows:
        return rows.take(self.places(len(rows.index)))


@pytest.mark.parametrize(
    ("layers", "places", "said"),
    [
        ([3], torch.arange, r"drops rows after layers \[3\]; there are 0 to 2"),
        (
            [0],
            lambda n: torch.arange(n - 1),
            "Odd kept 59 of 60 rows after layer 0: they must be .* all text and the last",
        ),
        ([0], lambda n: torch.arange(1, n), "all text"),
        ([1], lambda n: torch.arange(n).flip(0), "in their order"),
        ([1], lambda n: torch.arange(n).clamp(max=n - 2), "in their order"),
    ],
)
def test_what_may_not_go_on_is_refused(layers, places, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        in_one_piece("sections", Odd(layers, places))


def test_what_all_layers_read_is_the_stock_model_also_in_one_with_the_cache() -> None:
    everything = Odd([0, 1, 2], torch.arange)
    assert torch.equal(in_one_piece("interleaved", everything).logits, plain("interleaved"))
    one = read("sections", build_kv("snapkv", keep=0.5, window=4))
    other = read("sections", build_kv("snapkv", keep=0.5, window=4), layers=everything)
    torch.testing.assert_close(other.logits, one.logits, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(one.kept_rows, other.kept_rows, strict=True))


@pytest.mark.parametrize("name", ["pivotkv", "snapkv", "random", "streaming"])
def test_keys_that_came_are_kept_where_the_budget_has_room(name: str) -> None:
    """However a KV compressor ranks: rows that did not come take no place of those that did."""
    free = {"compact_positions": False} if name == "pivotkv" else {}
    layers, kv = build("fastv", keep=0.6, layer=1), build_kv(name, keep=0.8, **free)
    came = read("sections", build_kv("random", keep=0.999), layers=layers).keys_per_layer
    found = read("sections", kv, layers=layers).keys_per_layer
    assert found[1:] == came[1:] and found[0] < came[0]
