"""Weights from which a small language model begins to look things up: by chance, that takes thousands of steps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM


@torch.no_grad()
def look_up(model: Qwen2ForCausalLM, layer: int, head: int, pairs: Sequence[tuple[Tensor, Tensor]], keys: int) -> None:
    """Let a head begin by attending from words to what looks like them, and by writing in words what is seen there.

    `pairs` of a word and its look, up to one per dimension of the head; the first `keys` of them, up to half of that,
    are looked up: each has a dimension among the slow rotary frequencies, which distance hardly turns. A word and its
    look are not alike, or words would attend to themselves. Found by chance, look-ups come after thousands of steps.
    """
    attention: Any = model.model.layers[layer].self_attn
    half, start = attention.head_dim // 2, head * attention.head_dim
    for number, pair in enumerate(pairs[:keys]):
        place = start + (half if number % 2 else 0) + half - 1 - number // 2
        for projection, vector in zip((attention.q_proj, attention.k_proj), pair, strict=True):
            projection.weight[place] = 0.85 * vector / vector.norm()
    for number, (word, look) in enumerate(pairs):
        attention.v_proj.weight[start + number] = 0.5 * look / look.norm()
        attention.o_proj.weight[:, start + number] = 0.5 * word


@torch.no_grad()
def show_words(model: Qwen2ForCausalLM, head: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Let a head of the first layer that looks back begin by writing the looks of the words that it sees.

    So the last word of "red square left" looks like what it tells of, and is found as tokens of a video are.
    """
    attention: Any = model.model.layers[0].self_attn
    start = head * attention.head_dim
    for number, (word, look) in enumerate(pairs):
        attention.v_proj.weight[start + number] = 0.5 * word / word.norm()
        attention.o_proj.weight[:, start + number] = 0.5 * look


@torch.no_grad()
def look_at_question(model: Qwen2ForCausalLM, layer: int, head: int) -> None:
    """Let a head begin by attending to the dozen tokens before it, where a question's words stand before its answer."""
    attention: Any = model.model.layers[layer].self_attn
    turn = model.model.rotary_emb.inv_freq[2:6] * 9
    first = head * attention.head_dim + 2
    second = first + attention.head_dim // 2
    attention.k_proj.bias[first : first + 4] = 3.0
    attention.q_proj.bias[first : first + 4] = 3.0 * turn.cos()
    attention.q_proj.bias[second : second + 4] = -3.0 * turn.sin()
