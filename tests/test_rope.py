"""Rotations after the fact equal rotations at once, for every kind of rotary embedding."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding, apply_rotary_pos_emb

from langdc.conformance.prompts import KINDS, MODELS, small
from langdc.rope import Rope, yarn

HEADS, LENGTH, WIDTH = 2, 7, 16


def rotated(rotary, states: Tensor, positions: Tensor) -> Tensor:
    """What the model itself makes of states at positions."""
    cos, sin = rotary(states, positions if len(positions) > 1 else positions[0])
    return apply_rotary_pos_emb(states, states, cos, sin)[0]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def places(kind: str, seed: int = 0) -> Tensor:
    axes = 1 if kind == "one axis" else 3
    return torch.randint(0, 60, (axes, 1, LENGTH), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[*KINDS, "yarn"])
def rotary_and_kind(request):
    if request.param != "yarn":
        return small(request.param).text_model.rotary_emb, request.param
    config = Qwen2Config(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    yarn(config, 4)
    return Qwen2RotaryEmbedding(config), "one axis"


def test_moving_equals_rotating_there_at_once(rotary_and_kind) -> None:
    rotary, kind = rotary_and_kind
    states, old, new = noise(1, HEADS, LENGTH, WIDTH), places(kind), places(kind, 1)
    found = Rope(rotary).rerotate(rotated(rotary, states, old), new - old)
    torch.testing.assert_close(found, rotated(rotary, states, new), atol=1e-5, rtol=0)


def test_stripping_gives_back_what_the_projection_made(rotary_and_kind) -> None:
    rotary, kind = rotary_and_kind
    states, stands = noise(1, HEADS, LENGTH, WIDTH), places(kind)
    rope = Rope(rotary)
    found = rope.turn(rotated(rotary, states, stands), *rope.angles(-stands, rope.scaling**2))
    torch.testing.assert_close(found, states, atol=1e-5, rtol=0)


def test_moving_by_nothing_changes_no_bit(rotary_and_kind) -> None:
    rotary, kind = rotary_and_kind
    states = noise(1, HEADS, LENGTH, WIDTH)
    for dtype in (torch.float32, torch.bfloat16):
        given = states.to(dtype)
        assert torch.equal(Rope(rotary).rerotate(given, torch.zeros_like(places(kind))), given)


def test_heads_may_move_differently() -> None:
    rotary = small("sections").text_model.rotary_emb
    states, delta = noise(1, HEADS, LENGTH, WIDTH), torch.randint(-9, 9, (3, HEADS, LENGTH))
    found = Rope(rotary).rerotate(states, delta)
    for head in range(HEADS):
        alone = Rope(rotary).rerotate(states[:, head : head + 1], delta[:, head : head + 1])
        torch.testing.assert_close(found[:, head : head + 1], alone)


def test_low_precision_rounds_once() -> None:
    rotary = small("one axis").text_model.rotary_emb
    states, delta = noise(1, HEADS, LENGTH, WIDTH).bfloat16(), places("one axis")
    exact = Rope(rotary).rerotate(states.float(), delta)
    assert torch.equal(Rope(rotary).rerotate(states, delta), exact.bfloat16())


def test_only_the_rotated_part_of_a_head_turns() -> None:
    rotary = small("one axis").text_model.rotary_emb  # turns 16 of 24
    states, delta = noise(1, HEADS, LENGTH, 24), places("one axis")
    found = Rope(rotary).rerotate(states, delta)
    assert torch.equal(found[..., 16:], states[..., 16:])
    torch.testing.assert_close(found[..., :16], Rope(rotary).rerotate(states[..., :16], delta))


def test_frequencies_that_follow_the_length_are_refused() -> None:
    rotary = torch.nn.Module()
    rotary.rope_type = "dynamic"
    with pytest.raises(ValueError, match=r"'dynamic'.*compact_positions=False"):
        Rope(rotary).rerotate(noise(1, 1, 2, 4), torch.zeros(1, 1, 2, dtype=torch.long))


def test_yarn_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"0\.5"):
        yarn(Qwen2Config(), 0.5)
    with pytest.raises(ValueError, match="text model's config"):
        yarn(SimpleNamespace(), 4)
    config = Qwen2Config()
    yarn(config, 4)
    with pytest.raises(ValueError, match="has 'yarn' rotary positions already"):
        yarn(config, 2)


@pytest.mark.parametrize("kind", ["one axis", "sections"])
def test_yarn_slows_down_what_turns_less_than_once(kind: str) -> None:
    """Pairs that turn 32 times or more over the trained range stay, those below once go 4 times slower."""
    model, config = MODELS[kind]
    stated = {
        "rope_type": "default",
        "rope_theta": 1e6,
        **({} if kind == "one axis" else {"mrope_section": [16, 24, 24]}),
    }
    full = config(
        hidden_size=256, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1, vocab_size=8,
        max_position_embeddings=32768, rope_parameters=stated, pad_token_id=None,
    )  # fmt: skip
    yarn(full, 4)
    rotary = model(full).rotary_emb
    plain = [1e6 ** (-pair / 64) for pair in range(64)]
    turns = [32768 * speed / (2 * math.pi) for speed in plain]
    first = max(pair for pair in range(64) if turns[pair] >= 32)  # the last that stays
    last = min(pair for pair in range(64) if turns[pair] <= 1)  # the first that is slowed down fully
    mixed = [min(1.0, max(0.0, (pair - first) / (last - first))) for pair in range(64)]
    expected = [speed * (1 - part) + speed / 4 * part for speed, part in zip(plain, mixed, strict=True)]
    torch.testing.assert_close(rotary.inv_freq, torch.tensor(expected), atol=0, rtol=1e-5)
    assert 0 < first < last < 64
    assert rotary.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_keeps_the_sections_of_a_three_axis_model() -> None:
    config = small("sections").text_model.config.__class__(
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    )
    yarn(config, 4)
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["mrope_section"] == [2, 3, 3]
    assert config.rope_parameters["rope_theta"] == 1e6
