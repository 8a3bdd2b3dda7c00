"""Greedy decoding of a batch from embeddings, keeping one layer's hidden states.

Letters: B rows, M prompt length, Z width of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

CHECK_EVERY = 8  # steps between looks at the stop flags, each of which waits for the device


@dataclass(frozen=True, eq=False)
class GenerateOutput:
    """What was written: `ids` per row without the end token; `at` and `predicting`, [n,Z] per row.

    `at` is the state at the position whose input is the token, `predicting` the state one earlier, that chose it; with
    one more [n+1,Z] for an end token that counts as said.
    """

    ids: list[Tensor]
    at: list[Tensor]
    predicting: list[Tensor]


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    embeds: Tensor,
    mask: Tensor,
    end: list[int],
    most: int,
    layer: int,
    synced: bool = False,
    said: Sequence[int] = (),
) -> GenerateOutput:
    """Write at most `most` tokens per row after left-padded prompts; every row stops at its own end token.

    `embeds` [B,M,Z]; `mask` [B,M] 1 at real positions; `layer` indexes the model's hidden states (0: embeddings).
    `synced`: all ranks of a sharded model run the same number of steps. `said`: those of `end` that count as one of
    the `most` tokens, so that the state that chose them is kept.
    """
    ends = torch.tensor(end, device=embeds.device)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    written: list[Tensor] = []
    states: list[Tensor] = []
    finished = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
    inputs = embeds
    for step in range(most + 1):
        found = model.model(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        states.append(found.hidden_states[layer][:, -1])
        token = model.lm_head(found.last_hidden_state[:, -1]).argmax(-1)
        finished = finished | torch.isin(token, ends)
        written.append(token)
        if step % CHECK_EVERY == CHECK_EVERY - 1 and _all_finished(finished, synced):
            break
        inputs = model.get_input_embeddings()(token)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return _cut(torch.stack(written, 1), torch.stack(states, 1), ends, most, ends.new_tensor(said))


def predictions(tokens: int, most: int) -> int:
    """How many predictions `greedy` makes for a row of `tokens` tokens and its end, on its own."""
    return min(most + 1, -(-(tokens + 1) // CHECK_EVERY) * CHECK_EVERY)


def _all_finished(finished: Tensor, synced: bool) -> bool:
    flag = finished.all().int()
    if synced and torch.distributed.is_initialized():
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag)


def _cut(ids: Tensor, states: Tensor, ends: Tensor, most: int, said: Tensor) -> GenerateOutput:
    """Rows up to their end token. `states[:, i]` chose token i, and is the state at the position of token i - 1."""
    stopped = torch.isin(ids, ends)
    lengths = torch.where(stopped.any(1), stopped.int().argmax(1), ids.shape[1]).clamp(max=most)
    counted = torch.isin(ids.gather(1, lengths[:, None])[:, 0], said) & (lengths < most)
    chosen = (lengths + counted).tolist()
    lengths = lengths.tolist()
    return GenerateOutput(
        ids=[row[:n] for row, n in zip(ids, lengths, strict=True)],
        at=[row[1 : n + 1] for row, n in zip(states, lengths, strict=True)],
        predicting=[row[:n] for row, n in zip(states, chosen, strict=True)],
    )
