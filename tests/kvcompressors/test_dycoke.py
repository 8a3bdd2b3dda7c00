"""DyCoke's second stage: replies are those of the stock model with the keys hidden that a token does not read."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from langdc.attention import using
from langdc.conformance.prompts import FRAME, FRAMES, KINDS, LAYERS, QUESTION, TEXT, prompt, read, small
from langdc.generate import Continuation
from langdc.kvcompressors import build
from langdc.layercompressors import layercompressors
from tests.reference.dycoke import read_of_video
from tests.test_prefill import _Work

TOKENS, LENGTH, NEW = FRAMES * FRAME, TEXT + FRAMES * FRAME + QUESTION, 8
OPTIONS = {"do_sample": False, "eos_token_id": [], "pad_token_id": 0, "output_logits": True}
GIVEN = {**OPTIONS, "max_new_tokens": NEW, "return_dict_in_generate": True}


def sharper(kind: str, factor: float):
    """A small model whose attention is sharper, or flatter, in the first layers."""
    model = deepcopy(small(kind))
    for layer in model.text_model.layers[:2]:
        layer.self_attn.q_proj.weight.data *= factor
    return model


@torch.no_grad()
def slowly(kind: str, model, ids: Tensor, first: int, count: int, released: bool) -> tuple[Tensor, list]:
    """Logits [n,V] in float64 after the prompt and after each of the tokens `ids` [n-1] of its reply, and which rows of
    the video each token read. The stock model reads all at once, without a cache.
    """
    words, model = prompt(kind), deepcopy(model)
    text, head = model.text_model.double(), model.lm_head.double()
    later = words.positions.max() + 1 + torch.arange(len(ids))
    positions = torch.cat([words.positions, later.expand(len(words.positions), 1, -1)], 2)
    given = {"position_ids": positions if len(positions) > 1 else positions[0], "use_cache": False}
    embeds = torch.cat([words.embeds.double(), text.get_input_embeddings()(ids)])[None]
    text.set_attn_implementation("eager")
    attention = text(inputs_embeds=embeds, output_attentions=True, **given).attentions[first - 1][0].mean(0)
    video = range(TEXT, TEXT + TOKENS - 2 if released else TEXT + TOKENS)
    paid = [[float(attention[LENGTH + number, row]) for row in video] for number in range(len(ids))]
    sets = [[TEXT + place for place in places] for places in read_of_video(paid, count, released)]
    mask = torch.ones(len(attention), len(attention), dtype=torch.bool).tril()
    for number, rows in enumerate(sets):
        mask[LENGTH + number, [row for row in video if row not in rows]] = False
    text.set_attn_implementation("sdpa")
    for layer in text.layers[first:]:
        layer.register_forward_pre_hook(
            lambda _, args, options: (args, options | {"attention_mask": mask[None, None]}), with_kwargs=True
        )
    return head(text(inputs_embeds=embeds, **given).last_hidden_state[0, LENGTH - 1 :]), sets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "first", "count"),
    [
        ({"keep": 0.6}, 1, 19),
        ({"keep": 0.75, "layer": 2}, 2, 12),
        ({"keep": 0.35, "layer": 1}, 1, 1),
        ({"tokens": 42}, 1, 26),
        ({"keep": 0.3, "variant": "released"}, 1, 13),
        ({"keep": 0.5, "variant": "released", "layer": 2}, 2, 23),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_a_reply_is_the_stock_models_with_keys_hidden(
    kind: str, settings: dict, first: int, count: int, factor
) -> None:
    model = sharper(kind, factor)
    reading = read(kind, build("dycoke_decoding", **settings), model=model)
    written = Continuation(reading).generate(**GIVEN)
    released = settings.get("variant") == "released"
    expected, sets = slowly(kind, model, written.sequences[0, :-1], first, count, released)
    torch.testing.assert_close(torch.cat(written.logits).double(), expected, atol=1e-4, rtol=1e-4)
    whole = TOKENS - 2 if released else TOKENS
    unread = (LAYERS - first) * sum(whole - len(rows) for rows in sets)
    assert reading.steps.unread == unread > 0
    if not released:
        assert (LAYERS * TOKENS - unread / len(sets)) / LAYERS <= settings.get("keep", 42 / LENGTH) * TOKENS + 1e-6


def test_the_oracle_sees_choices_that_stay_and_keys_that_come_back() -> None:
    stayed, back = 0, 0
    for factor in (1.0, 0.1):
        model = sharper("sections", factor)
        ids = Continuation(read("sections", model=model)).generate(**GIVEN).sequences[0]
        _, sets = slowly("sections", model, ids[:-1], 1, 19, False)
        stayed += sum(one == two for one, two in pairwise(sets))
        back += sum(bool(set(c) & set(a) - set(b)) for a, b, c in zip(sets, sets[1:], sets[2:], strict=False))
    assert stayed and back


@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_a_token_waits_for_nothing(variant: str) -> None:
    """As released: to know whether the choice stays."""
    reading = read("sections", build("dycoke_decoding", keep=0.6, variant=variant))
    writing, ids = Continuation(reading), torch.tensor([[1]])
    with torch.no_grad(), using(reading.text_model):
        writing._states(ids)
        with _Work() as work:
            writing._states(ids)
    assert bool(work.waits) == (variant == "released")


def test_what_it_says_to_settings_that_leave_nothing() -> None:
    for settings, said in (
        ({"keep": 0.3}, r"1 of 3 layers read all keys of a video; keep=0.3 .* Set keep to more than 0\.334"),
        ({"keep": 0.34}, r"1 of 3 layers read all 48 keys of the video, .* Set keep to at least 0\.348"),
        ({"tokens": 20}, r"1 of 3 layers read all 48 keys .* Set tokens to at least 21, or layer"),
        ({"keep": 0.5, "layer": 3}, "layer=3 of 3: .* one of 1 to 2"),
        ({"keep": 0.5, "layer": 0}, "layer=0 of 3"),
    ):
        with pytest.raises(ValueError, match=said):
            read("one axis", build("dycoke_decoding", **settings))
    read("one axis", build("dycoke_decoding", tokens=21))
    with pytest.raises(ValueError, match="variant='paper'"):
        build("dycoke_decoding", keep=0.5, variant="paper")
    assert (
        build("dycoke_decoding", keep=0.5)._first_layer(28) == build("dycoke_decoding", keep=0.5)._first_layer(24) == 3
    )


@pytest.mark.parametrize("name", layercompressors.names())
def test_it_is_refused_beside_a_layer_compressor(name: str) -> None:
    layers = layercompressors.build(name, keep=0.8)
    with pytest.raises(ValueError, match=r"DyCokeDecoding chooses in one layer .* Leave out one of them"):
        read("one axis", build("dycoke_decoding", keep=0.6), layers=layers)
    read("one axis", build("dycoke_decoding", keep=1.0), layers=layers)  # it does nothing
