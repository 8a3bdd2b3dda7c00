"""Spliced prompts of different lengths as one padded batch for a language model.

Letters: B prompts, M length, D width.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from langdc.backbones.chat import IGNORED
from langdc.interfaces import Backbone
from langdc.types import Prompt, Spliced, VideoTokens


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """What a language model is called with: `embeds` [B,M,D], `positions` [B,M], `labels` [B,M] and a `mask`.

    The mask is [B,M], 1 at real positions; or, with sequence_ids, what is added to scores [B,1,M,M], 0 or very negative.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor | None


def pad(items: list[Spliced], left: bool = False) -> PaddedBatch:
    """Pad prompts to one length, on the right for training or on the left for generation."""
    side = "left" if left else "right"

    def stack(tensors: list[Tensor], value: float) -> Tensor:
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)

    embeds = stack([item.embeds for item in items], 0.0)
    real = stack([torch.ones(len(item.embeds), dtype=torch.bool, device=embeds.device) for item in items], False)
    labels = [item.labels for item in items if item.labels is not None]
    padded_labels = stack(labels, IGNORED) if labels else None
    sequence_ids = [item.sequence_id for item in items]
    if all(sequence_id is None for sequence_id in sequence_ids):
        return PaddedBatch(embeds, real.long(), (real.cumsum(1) - 1).clamp(min=0), padded_labels)
    filled = [
        torch.zeros(len(item.embeds), dtype=torch.long, device=embeds.device) if item.sequence_id is None else item.sequence_id
        for item in items
    ]
    sequence_id = stack(filled, -1)
    # added to the scores, since stock "eager" attention would add a boolean mask as 0 and 1
    seen = _branch_mask(sequence_id)[:, None]
    mask = torch.zeros_like(seen, dtype=embeds.dtype).masked_fill(~seen, torch.finfo(embeds.dtype).min)
    return PaddedBatch(embeds, mask, stack(list(map(_branch_positions, filled)), 0), padded_labels)


def _branch_mask(sequence_id: Tensor) -> Tensor:
    """Who may look at whom: back in time, within the own sequence_id or at what all share; padding sees itself. [B,M,M]"""
    length = sequence_id.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=sequence_id.device).tril()
    shared = sequence_id[:, None, :] == 0
    same = sequence_id[:, :, None] == sequence_id[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=sequence_id.device)
    return (causal & (same | shared) & (sequence_id >= 0)[:, None, :]) | itself


def _branch_positions(sequence_id: Tensor) -> Tensor:
    """Every sequence_id counts on from the end of the shared part: [M]."""
    order = torch.arange(len(sequence_id), device=sequence_id.device)
    starts = torch.zeros(int(sequence_id.max()) + 2, dtype=torch.long, device=sequence_id.device)
    starts.scatter_reduce_(0, sequence_id, order, "amin", include_self=False)
    shared = int((sequence_id == 0).sum())
    return torch.where(sequence_id == 0, order, order - starts[sequence_id] + shared)


def read_together(backbone: Backbone, prompts: list[Prompt], tokens: list[list[VideoTokens]]) -> dict[str, Any]:
    """What `generate` needs to answer prompts: those that begin with the same video read it only once."""
    begins = [_beginning(prompt, videos) for prompt, videos in zip(prompts, tokens, strict=True)]
    order = {begin: number for number, begin in enumerate(dict.fromkeys(begins))}
    if len(order) == len(prompts):
        batch = pad(backbone.splice(prompts, tokens), left=True)
        return {"inputs_embeds": batch.embeds, "attention_mask": batch.mask}
    chosen = [begins.index(begin) for begin in order]
    heads = pad(backbone.splice([_head(prompts[n]) for n in chosen], [tokens[n] for n in chosen]), left=True)
    cache = DynamicCache(config=backbone.language_model.config)
    backbone.text_model(
        inputs_embeds=heads.embeds,
        attention_mask=heads.mask,
        position_ids=heads.positions,
        past_key_values=cache,
        use_cache=True,
    )
    of = torch.tensor([order[begin] for begin in begins], device=heads.mask.device)
    cache.batch_select_indices(of)
    tails = pad(
        backbone.splice([Prompt(prompt.ids[_cut(prompt) :]) for prompt in prompts], [[]] * len(prompts)), left=True
    )
    # `generate` takes embeddings of the whole length and skips what the cache holds
    read = tails.embeds.new_zeros(len(prompts), heads.mask.shape[1], heads.embeds.shape[2])
    return {
        "inputs_embeds": torch.cat([read, tails.embeds], 1),
        "attention_mask": torch.cat([heads.mask[of], tails.mask], 1),
        "past_key_values": cache,
    }


def _cut(prompt: Prompt) -> int:
    return prompt.slots[0].position


def _head(prompt: Prompt) -> Prompt:
    return Prompt(prompt.ids[: _cut(prompt)], slots=prompt.slots)


def _beginning(prompt: Prompt, videos: list[VideoTokens]) -> Hashable:
    """Equal for prompts that may share what they read up to the end of their one video."""
    if len(videos) != 1 or _cut(prompt) == len(prompt.ids):
        return id(prompt)
    return id(videos[0]), tuple(prompt.ids[: _cut(prompt)].tolist())
