"""Causal attention over layers of different numbers of keys, and the attention each key receives.

A model uses the former inside `using(model)`, as `langdc`. No model returns weights: they are computed here, in blocks.

On CUDA only flash has a causal mask aligned to the end: in 16 bits, with grouped keys as they are. Elsewhere masks are
made for some queries at a time. Where there are as many queries as keys torch chooses: cuDNN on Hopper cards.
Letters: h query heads, G key heads, E head width, Q queries, K keys cached, n keys scored.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.backends import cuda
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from langdc.devices import at_once

NAME = "langdc"
_FLASH_DEVICES = ("cuda",)
_MASK_BLOCK = 512
"""Queries per call where a kernel has no causal mode of its own and needs a mask."""


class Observer(Protocol):
    """Sees the queries, keys and values of each layer before they attend."""

    def before_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From queries [1,h,Q,E] and all keys and values [1,G,K,E] to those to use."""
        ...


def _flash_kernel() -> Callable[..., Tensor] | None:
    """flash-attn's kernel if installed, for queries, keys and values [1,n,heads,E]; its causal mask is bottom-right."""
    try:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return flash_attn_func


def _causal_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, hidden: Tensor | None = None
) -> Tensor:
    """Attention [1,h,Q,E] of the last Q of K tokens, causal from the end; `hidden` [K]: keys never attended to."""
    if hidden is not None:
        return _blocks(query, key, value, scale, hidden)
    flash = _flash_kernel() if query.dtype in (torch.float16, torch.bfloat16) else None
    if flash is not None and query.device.type in _FLASH_DEVICES:
        turned = [states.transpose(1, 2) for states in (query, key, value)]
        return flash(*turned, softmax_scale=scale, causal=True).transpose(1, 2)
    return _sdpa(query, key, value, scale)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    if queries in (1, keys):
        causal = queries > 1
        options = _options(query, key, scale)
        return functional.scaled_dot_product_attention(query, key, value, is_causal=causal, **options)
    if query.device.type == "cpu":
        return _past_and_own(query, key, value, scale)
    if _has_flash(query, key, value):  # its causal mask is bottom-right, unlike that of the function above
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scale)[0]
    return _blocks(query, key, value, scale)


def _has_flash(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether torch's flash kernel for CUDA takes these tensors, grouped keys as they are."""
    if not query.is_cuda or query.shape[-1] % 8:
        return False
    return cuda.can_use_flash_attention(cuda.SDPAParams(query, key, value, None, 0.0, False, True))


def _options(query: Tensor, key: Tensor, scale: float | None) -> dict[str, Any]:
    return {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}


def _past_and_own(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """On a CPU: attention to the past and to the queries' own keys, each by the flash kernel, which needs no mask;
    weighted by their sums of exponentials.
    """
    past = key.shape[2] - query.shape[2]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    before, before_log = flash(query, key[:, :, :past], value[:, :, :past], 0.0, False, scale=scale)
    own, own_log = flash(query, key[:, :, past:], value[:, :, past:], 0.0, True, scale=scale)
    return torch.lerp(own, before, torch.sigmoid(before_log - own_log)[..., None].to(own.dtype))


def _blocks(query: Tensor, key: Tensor, value: Tensor, scale: float | None, hidden: Tensor | None = None) -> Tensor:
    """Attention with a mask, some queries at a time."""
    queries, keys = query.shape[2], key.shape[2]
    parts = []
    for start in range(0, queries, _MASK_BLOCK):
        stop = min(start + _MASK_BLOCK, queries)
        seen = keys - queries + stop
        mask = torch.ones(stop - start, seen, dtype=torch.bool, device=query.device).tril(seen - stop + start)
        if hidden is not None:
            mask &= ~hidden[:seen]
        part = query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen]
        attended = functional.scaled_dot_product_attention(*part, attn_mask=mask, **_options(query, key, scale))
        parts.append(attended)
    return torch.cat(parts, 2)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    observer: Observer | None = None,
    padding: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls, with rotated queries, past and new keys. It gives no kernel
    positions, whose gaps would be taken for packed sequences. `padding`: true at keys that no query attends to.
    """
    if sliding_window is not None and sliding_window < key.shape[2]:
        raise ValueError(
            f"Layer {module.layer_idx} attends to a sliding window of {sliding_window} tokens; keys can be evicted "
            "only where a layer attends to all of them."
        )
    if observer is not None:
        number = int(module.layer_idx)  # pyright: ignore[reportArgumentType]
        query, key, value = observer.before_attention(number, query, key, value)
    hidden = None if padding is None else padding[: key.shape[2]]
    return _causal_attention(query, key, value, scaling, hidden).transpose(1, 2), None


AttentionInterface.register(NAME, _attend)


@contextmanager
def using(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block this one model attends through `_attend`."""
    before = model.config._attn_implementation or "eager"
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def attending(config: Any, name: str) -> Iterator[None]:
    """Within the block, models of this config use the attention function of that name."""
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


def _note(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, noted: list[Any], **others: Any
) -> tuple[Tensor, None]:
    noted += query, key, others["scaling"]
    return query.transpose(1, 2), None  # of the shape that the layer expects; its output is not used


AttentionInterface.register("langdc_note", _note)


def queries_and_keys(layer: Any, states: Tensor, turned: Any) -> tuple[Tensor, Tensor]:
    """Rotated queries [1,h,n,E], scaled, and keys [1,G,n,E] that a decoder layer computes from states [1,n,D].

    The layer's own attention module is called, as a sharded engine expects, but attends to nothing. `turned`: what the
    model's `rotary_emb` gives.
    """
    noted: list[Any] = []
    with attending(layer.self_attn.config, "langdc_note"):
        layer.self_attn(layer.input_layernorm(states), position_embeddings=turned, attention_mask=None, noted=noted)
    query, key, scale = noted
    return query * scale, key


# a name for which transformers makes no mask
AttentionInterface.register("langdc_causal", sdpa_attention_forward)


@contextmanager
def causal_rows(config: Any, length: int) -> Iterator[None]:
    """Inside the block a model of this config that attends by sdpa takes its `length` positions as causal, whatever
    the padding mask: rows padded on the right need no more. So the kernels need no mask, and nothing waits for the
    device to see whether there is padding. A mask of four dimensions counts as ever, and so do sliding windows.
    """
    before, window = config._attn_implementation, getattr(config, "sliding_window", None)
    causal = before == "sdpa" and (window is None or length <= window)
    with attending(config, "langdc_causal" if causal else before):
        yield


def received_attention(
    query: Tensor, key: Tensor, scale: float | None = None, causal: bool = False, asking: Tensor | None = None
) -> Tensor:
    """Attention received by each key, per key head: [G,n] in float32.

    Softmax of queries [1,h,Q,E] over keys [1,G,n,E], summed over queries, averaged over the h/G heads of a group.
    `causal`: the queries are the last Q of the n tokens and attend only up to themselves. `asking` [Q]: which of the
    queries count; all by default.
    """
    heads, queries, width = query.shape[1:]
    groups, keys = key.shape[1:3]
    rows = query[0].reshape(groups, -1, width)
    columns, factor = key[0].transpose(1, 2), width**-0.5 if scale is None else scale
    step = at_once(4 * groups * keys, query.device)
    total = None
    for start in range(0, rows.shape[1], step):
        block = rows[:, start : start + step]
        scores = torch.baddbmm(block.new_empty(1, 1, 1), block, columns, beta=0, alpha=factor)
        if causal:
            place = torch.arange(start, start + scores.shape[1], device=query.device) % queries + keys - queries
            hidden = torch.arange(keys, device=query.device) > place[:, None]
            scores = scores.masked_fill(hidden, float("-inf"))
        weights = torch.softmax(scores, -1, dtype=torch.float32)
        if asking is not None:
            weights *= asking.repeat(heads // groups)[start : start + step, None]
        total = weights.sum(1) if total is None else total + weights.sum(1)
    assert total is not None
    return total / (heads // groups)
