"""A text model that plays back recorded queries, keys and values, so that only what is around it is tested.

Letters: A rotary axes, L layers, h query heads, G key heads, E head width, M prompt length, Q piece length.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from langdc.attention import _attend


class RecordedModel(nn.Module):
    """Layers whose projections were recorded: `query` [L,h,M,E], `key` and `value` [L,G,M,E], before rotation.

    An embedding is one number, the row it stands for.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, rotary: nn.Module) -> None:
        super().__init__()
        self.query, self.key, self.value, self.rotary_emb = query, key, value, rotary
        self.config = SimpleNamespace(
            num_hidden_layers=len(query), num_key_value_heads=key.shape[1], _attn_implementation="sdpa"
        )
        self.attended: list[list[int]] = []

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor, past_key_values, observer, use_cache: bool):
        rows = inputs_embeds[0, :, 0].long()
        cos, sin = self.rotary_emb(inputs_embeds, position_ids)
        seen = []
        for layer in range(len(self.query)):
            query, key = (turn(part[layer][None, :, rows], cos, sin) for part in (self.query, self.key))
            keys, values = past_key_values.update(key, self.value[layer][None, :, rows], layer)
            _attend(SimpleNamespace(layer_idx=layer), query, keys, values, None, observer=observer)
            seen.append(keys.shape[2])
        self.attended.append(seen)
        return SimpleNamespace(last_hidden_state=inputs_embeds)


def turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation of Llama and Qwen."""
    half = states.shape[-1] // 2
    return states * cos + torch.cat([-states[..., half:], states[..., :half]], -1) * sin


def embeds(length: int) -> Tensor:
    """A prompt for `RecordedModel` [M,1]."""
    return torch.arange(length, dtype=torch.float32)[:, None]
