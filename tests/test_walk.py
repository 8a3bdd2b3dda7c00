"""Reading layer by layer: memory, waits, and models that it knows. Letters: D width."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from benchmarks.memory import most_live_bytes
from langdc import devices
from langdc.backbones.inputs import read_prompt
from langdc.conformance.prompts import FRAME, KINDS, QUESTION, TEXT, WIDTH, plain, prompt, small
from langdc.conformance.test_layercompressor import in_one_piece
from langdc.interfaces import LayerCompressor, Rows
from langdc.layercompressors import build, layercompressors
from langdc.prefill import prefill
from langdc.walk import KNOWN, paid_attention
from tests import tiny
from tests.backbones.test_videogpt_plus import build as videogpt_plus
from tests.backbones.test_videogpt_plus import conversation
from tests.hidden import all_but
from tests.reference.layers import paid
from tests.test_prefill import _Work as Work

EARLY = {"holitom_inner": {"layer": 1}}


def member(name: str, keep: float = 0.5) -> LayerCompressor:
    return build(name, keep=keep, **EARLY.get(name, {}))


@pytest.mark.parametrize("name", layercompressors.names())
def test_no_tensor_of_queries_by_keys_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But of those recycled, whose distances SparseVLM's rule needs."""
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", 1 << 18)
    small("sections")
    words, shown = prompt("sections", frames=400), 400 * FRAME
    with Work() as work:
        found = in_one_piece("sections", member(name), words)
    recycled = 0.3 * (shown - (found.keys_per_layer[1] - TEXT - QUESTION)) if name == "sparsevlm" else 0
    assert work.largest <= max(shown * 3 * WIDTH, (recycled + 9) ** 2) < shown**2 / 4


@pytest.mark.parametrize("name", layercompressors.names())
def test_less_memory_is_held_and_taken(name: str) -> None:
    """The cache is smaller by what was dropped, and so is the most that was alive at a time."""
    small("sections")
    words = prompt("sections", frames=100)

    def read(keep: float) -> int:
        return in_one_piece("sections", member(name, keep), words).cache.held_bytes

    text = TEXT + QUESTION
    assert read(0.5) / read(1.0) == pytest.approx((0.5 * 800 + text) / (800 + text), rel=0.01)
    assert most_live_bytes(lambda: read(0.5)) < 0.95 * most_live_bytes(lambda: read(1.0))


@pytest.mark.parametrize("name", layercompressors.names())
def test_waits_for_the_device_do_not_depend_on_rows(name: str) -> None:
    small("sections")
    waits = []
    for frames in (10, 60):
        words = prompt("sections", frames=frames)
        with Work() as work:
            in_one_piece("sections", member(name), words)
        waits.append(len(work.waits))
    assert waits[0] == waits[1]


@pytest.mark.parametrize(("asking", "past"), [([29], 0), ([3, 17, 29], 0), ([29], 11), ([0, 29], 11)])
def test_paid_attention(asking: list[int], past: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like the loops, a head at a time; older keys take their part and are left out."""
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", 1)
    query, key = torch.randn(6, 30, 8, dtype=torch.float64), torch.randn(2, past + 30, 8, dtype=torch.float64)
    found = paid_attention(query[None], key[None], torch.tensor(asking))
    padded = torch.cat([query.new_zeros(6, past, 8), query], 1)
    expected = torch.tensor([paid(padded, key, past + row)[past:] for row in asking]).float()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


class Seen(LayerCompressor):
    """Notes what it is given, and keeps all."""

    def __init__(self, *needs: str) -> None:
        self.needs, self.given = frozenset(needs), {}

    def begin(self, rows: Rows):
        self.first = rows
        return [0, 1]

    def keep(self, layer: int, rows: Rows) -> Rows:
        self.given[layer] = rows
        return rows.take(torch.arange(len(rows.index)))


def test_only_what_is_needed_is_computed() -> None:
    nothing, all_of_it = Seen(), Seen("question", "keys", "normed")
    words = prompt("one axis")
    assert in_one_piece("one axis", nothing, words).scoring_flops == 0
    in_one_piece("one axis", all_of_it, words)
    assert nothing.given[0].attention is None is nothing.given[1].keys and torch.equal(
        nothing.first.states, words.embeds
    )
    for layer, rows in all_of_it.given.items():
        assert rows.attention.shape == (QUESTION, len(words.embeds)) and rows.keys.shape == (2, 60, 16)
        torch.testing.assert_close(rows.attention.sum(1), torch.ones(QUESTION))
        assert torch.equal(rows.normed, small("one axis").text_model.norm(rows.states))
        assert torch.equal(rows.states, nothing.given[layer].states)
        assert rows.question.tolist() == list(range(60 - QUESTION, 60)) and rows.shown == 48


class Halfway(Seen):
    """Before the first layer, and after the attention of two."""

    halfway = True

    def begin(self, rows: Rows):
        return [-1, *super().begin(rows)]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_halfway_through_a_layer(kind: str) -> None:
    """Nothing of its feed-forward part is in the states; keeping all is the stock model; all of it is charged."""
    words, layer = prompt(kind), small(kind).text_model.layers[0]
    attended = []
    with layer.self_attn.register_forward_hook(lambda module, args, out: attended.append(out[0][0])):
        found = in_one_piece(kind, seen := Halfway("last"), words)
    torch.testing.assert_close(found.logits, plain(kind, words), atol=1e-5, rtol=1e-5)
    assert torch.equal(seen.given[-1].states, words.embeds) and seen.given[-1].attention is None
    assert torch.equal(seen.given[0].states, words.embeds + attended[0])
    assert torch.equal(seen.given[0].attention, seen_whole(kind, words).given[0].attention)
    assert found.calls == ((60, 0, 3, 60),)


def seen_whole(kind: str, words) -> Seen:
    in_one_piece(kind, seen := Seen("last"), words)
    return seen


def test_a_compressor_that_has_done_its_work_is_called_no_more() -> None:
    class Once(Halfway):
        def begin(self, rows: Rows):
            self.after = {-1, 0, 1}
            return self.after

        def keep(self, layer: int, rows: Rows) -> Rows:
            self.after.clear()
            return super().keep(layer, rows)

    in_one_piece("one axis", once := Once("last"))
    assert list(once.given) == [-1]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (5, [*range(5), *range(5), 0, 1, 2, 3, -1, 4]),
        (4, [*range(4), *range(4), *range(4), -1, -1, -1, -1]),  # what is left at the end is no frame
    ],
)
def test_each_row_is_given_its_number_within_its_frame(size: int, expected: list[int]) -> None:
    """Of two videos with frames of their own sizes, one with a word within its last frame."""
    words, model, seen = prompt("one axis"), small("one axis"), Seen("frames")
    video = words.video.long() - 1
    video[TEXT + 14] = -1
    video[TEXT + 16 : -QUESTION] = 1
    given = (words.embeds, words.positions, video)
    prefill(model.text_model, model.lm_head, *given, layers=seen, frame_tokens=[size, FRAME])
    numbers = [-1] * TEXT + expected + [*range(FRAME)] * 4 + [-1] * QUESTION
    assert seen.first.in_frame.tolist() == numbers
    prefill(model.text_model, model.lm_head, *given, layers=seen, frame_tokens=[size, None])
    assert seen.first.in_frame is None


def test_the_question_stays_the_same_where_text_stands_between_frames() -> None:
    """The last frame is dropped whole, and the text before it is no question."""
    words = prompt("sections")
    video = words.video.clone()
    video[TEXT + 39] = False

    class Last(Seen):
        def keep(self, layer: int, rows: Rows) -> Rows:
            super().keep(layer, rows)
            return rows.take((rows.index < TEXT + 40).logical_or(rows.video_id < 0).nonzero()[:, 0])

    dropping = Last("question")
    in_one_piece("sections", dropping, type(words)(words.embeds, words.positions, video.long() - 1))
    for rows in dropping.given.values():
        assert rows.index[rows.question].tolist() == list(range(60 - QUESTION, 60))
        assert len(rows.attention) == QUESTION
    assert len(dropping.given[1].index) == 60 - FRAME


def test_attention_of_the_next_layer_is_what_it_will_pay() -> None:
    before, after = Seen("last", "next"), Seen("last")
    in_one_piece("interleaved", before)
    in_one_piece("interleaved", after)
    torch.testing.assert_close(before.given[0].attention, after.given[1].attention)


def test_needs_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"Seen needs \['lats'\]; there is frames, keys, last, next, normed, question"):
        in_one_piece("one axis", Seen("lats"))


def test_scoring_is_counted() -> None:
    """The attention of the last row: of each of 4 heads to 60 keys of 16."""
    small("one axis")
    with FlopCounterMode(display=False) as counter:
        found = in_one_piece("one axis", Seen("last"))
    with FlopCounterMode(display=False) as plain:
        in_one_piece("one axis", Seen())
    assert found.scoring_flops == counter.get_total_flops() - plain.get_total_flops() == 2 * 2 * 4 * 60 * 16


@pytest.mark.parametrize("kind", [name for name in KNOWN if not name.endswith("text")])
@torch.no_grad()
def test_known_language_models(kind: str) -> None:
    """All layers walked through are the stock model, of those that the conformance tests do not have."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        kind, **sizes, num_key_value_heads=2, head_dim=16, vocab_size=96, pad_token_id=0, initializer_range=0.3
    )
    model, words = AutoModel.from_config(config, attn_implementation="sdpa").eval(), prompt("one axis")
    expected = model(inputs_embeds=words.embeds[None], position_ids=words.positions[0]).last_hidden_state[0, -1:]
    given = (words.embeds, words.positions, words.video)
    found = prefill(model, torch.nn.Identity(), *given, None, layers=Seen("question", "keys", "normed", "next"))
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)
    found = prefill(model, torch.nn.Identity(), *given, None, layers=Halfway("last"))
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)
    dropped = prefill(model, torch.nn.Identity(), *given, None, layers=member("pyramiddrop"))
    with all_but(model, dropped.kept_rows, len(words.embeds), 0):
        slowly = model(inputs_embeds=words.embeds[None], position_ids=words.positions[0]).last_hidden_state[0, -1:]
    torch.testing.assert_close(dropped.logits, slowly, atol=1e-5, rtol=1e-5)


def test_language_models_that_do_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those that scale embeddings."""
    text_model = small("one axis").text_model
    monkeypatch.setattr(type(text_model.config), "model_type", "gemma3_text")
    with pytest.raises(ValueError, match=r"is a 'gemma3_text'; Seen works between the layers of llama, mistral"):
        in_one_piece("one axis", Seen())


def test_videogpt_plus() -> None:
    backbone = videogpt_plus()
    question, tokens = backbone.prompt(conversation("what shape ?")), [replace(tiny.video_tokens(40), frame=5)]
    whole = read_prompt(backbone, question, [tokens[0]], None, [8])
    for name in layercompressors.names():
        same = read_prompt(backbone, question, tokens, None, [8], layers=member(name, 1.0))
        assert torch.equal(same.logits, whole.logits)
        found = read_prompt(backbone, question, tokens, None, [8], layers=member(name, 0.6))
        assert sum(found.keys_per_layer) / len(found.keys_per_layer) <= len(question.ids) + 24
