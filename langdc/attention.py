"""Attention: causal over a cache whose layers hold different numbers of keys, and how much attention each key receives.

The first is registered with transformers under the name `langdc`; a model uses it inside `using(model)` and as before
outside. No attention weights are ever asked of a language model: scores are computed from queries and keys, in blocks.

Letters: h query heads, G key heads, E head width, Q queries, K keys cached, n keys scored.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, PreTrainedModel

from langdc.blocks import at_once

NAME = "langdc"
FLASH_DEVICES = ("cuda",)
MASK_BLOCK = 512
"""Queries per call where a kernel has no causal mode of its own and needs a mask."""


class Observer(Protocol):
    """What may look at a layer's attention while it happens."""

    def attending(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Look at queries [1,h,Q,E] and all keys and values [1,G,K,E]; return the queries to use."""
        ...


def flash_kernel() -> Callable[..., Tensor] | None:
    """flash-attn's kernel if it is installed, for queries, keys and values [1,n,heads,E]; causal means bottom-right."""
    try:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return flash_attn_func


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Attention [1,h,Q,E] of the last Q of K tokens to all before them; the mask is aligned to the end of the keys."""
    flash = flash_kernel() if query.dtype in (torch.float16, torch.bfloat16) else None
    if flash is not None and query.device.type in FLASH_DEVICES:
        turned = [states.transpose(1, 2) for states in (query, key, value)]
        return flash(*turned, softmax_scale=scale, causal=True).transpose(1, 2)
    return _sdpa(query, key, value, scale)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    options: dict[str, Any] = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    attend_to = functional.scaled_dot_product_attention
    if queries == 1:
        return attend_to(query, key, value, **options)
    if queries == keys:
        return attend_to(query, key, value, is_causal=True, **options)
    if query.is_cuda:
        return attend_to(query, key, value, attn_mask=causal_lower_right(queries, keys), **options)
    parts = []
    for start in range(0, queries, MASK_BLOCK):
        stop = min(start + MASK_BLOCK, queries)
        seen = keys - queries + stop
        mask = torch.ones(stop - start, seen, dtype=torch.bool, device=query.device).tril(seen - stop + start)
        part = query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen]
        parts.append(attend_to(*part, attn_mask=mask, **options))
    return torch.cat(parts, 2)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    observer: Observer | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: rotated queries, past and new keys; the mask is made here, per layer.

    Positions are never handed to a kernel: gaps between kept tokens would be read as packed sequences.
    """
    if sliding_window is not None and sliding_window < key.shape[2]:
        raise ValueError(
            f"Layer {module.layer_idx} attends to a sliding window of {sliding_window} tokens; keys can be evicted "
            "only where a layer attends to all of them."
        )
    if observer is not None:
        query = observer.attending(int(module.layer_idx), query, key, value)  # pyright: ignore[reportArgumentType]
    return causal_attention(query, key, value, scaling).transpose(1, 2), None


AttentionInterface.register(NAME, attend)


@contextmanager
def using(model: PreTrainedModel) -> Iterator[None]:
    """Let this one model attend through `attend` inside the block, and as before after it."""
    before = model.config._attn_implementation or "eager"
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def received_attention(query: Tensor, key: Tensor, scale: float | None = None, causal: bool = False) -> Tensor:
    """How much attention each key receives, per key head: [G,n], in float32.

    Softmax of the queries [1,h,Q,E] over the keys [1,G,n,E], summed over the queries and averaged over the h/G heads
    of a group. `causal`: the queries are the last Q of the n tokens and do not see what follows them.
    """
    heads, queries, width = query.shape[1:]
    groups, keys = key.shape[1:3]
    rows = query[0].reshape(groups, -1, width)
    columns = key[0].transpose(1, 2) * (width**-0.5 if scale is None else scale)
    step = at_once(4 * groups * keys, query.device)
    total = torch.zeros(groups, keys, dtype=torch.float32, device=query.device)
    for start in range(0, rows.shape[1], step):
        scores = torch.bmm(rows[:, start : start + step], columns)
        if causal:
            place = torch.arange(start, start + scores.shape[1], device=query.device) % queries + keys - queries
            hidden = torch.arange(keys, device=query.device) > place[:, None]
            scores = scores.masked_fill(hidden, float("-inf"))
        total += torch.softmax(scores, -1, dtype=torch.float32).sum(1)
    return total / (heads // groups)
