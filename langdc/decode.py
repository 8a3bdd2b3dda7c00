"""Greedy batches: captions with their hidden states, and replies.

Letters: A rotary axes, B rows, M prompt length, K keys, V vocabulary, Z width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from langdc.steps import Reading, Steps, noting, steps_for

_CHECK_EVERY = 8
"""Steps between reads of the stop flags, each of which waits for the device."""


@dataclass(frozen=True, eq=False)
class _GenerateOutput:
    """Greedily written tokens: `ids` per row without the end token; `at` and `predicting`, [n,Z] per row.

    `at`: the state at the position whose input is the token; `predicting`: the state before it, which chose it; with
    one more [n+1,Z] for an end token of `greedy(counted_ends=...)`. `after` [*,Z]: states of all later steps.
    `prompt` [B,M,Z]: the states of the prompts in the same layer.
    """

    ids: list[Tensor]
    at: list[Tensor]
    predicting: list[Tensor]
    after: list[Tensor]
    prompt: Tensor


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    embeds: Tensor,
    mask: Tensor,
    end: list[int],
    max_tokens: int,
    layer: int,
    synced: bool = False,
    counted_ends: Sequence[int] = (),
    pad: int | None = None,
    compiled: bool = False,
) -> _GenerateOutput:
    """Write at most `max_tokens` tokens per row after left-padded prompts; every row stops at its own end token.

    `embeds` [B,M,Z]; `mask` [B,M] 1 at real positions; `layer` indexes the model's hidden states (0: embeddings).
    All layers are run, since the head needs them, but only that layer's states are kept.
    `synced`: all ranks of a sharded model run the same number of steps. `counted_ends`: those of `end` that count as
    one of the `max_tokens`, so that the state that chose them is kept. `pad`: the token of rows after their end.
    `compiled`: on CUDA, by kernels that torch.compile makes, in half a minute for each new shape.
    """
    layer = layer if layer >= 0 else model.config.num_hidden_layers + 1 + layer
    reading = _read(model, embeds, mask, layer)

    def stop(steps: Steps) -> bool:
        if steps.done % _CHECK_EVERY:
            return False
        stopped = _all_finished(steps.finished, synced)
        if not stopped and pad is None and not counted_ends:  # states after the end are asked for otherwise
            steps.drop_finished()
        return stopped

    steps = write(model.model, model.lm_head, [reading], end, max_tokens + 1, pad, 1.0, layer, compiled, stop)
    assert steps.states is not None and reading.states is not None
    ids, states = steps.ids[:, : steps.done].clone(), steps.states[:, : steps.done].clone()  # the next batch overwrites
    ends = torch.tensor(end, device=embeds.device)
    return _cut(ids, states, reading.states, ends, max_tokens, ends.new_tensor(counted_ends))


def _read(model: PreTrainedModel, embeds: Tensor, mask: Tensor, layer: int) -> Reading:
    positions, noted = (mask.cumsum(1) - 1).clamp(min=0), []
    cache = DynamicCache()
    options = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
    with noting(model.model, layer, noted.append):
        last = model.model(inputs_embeds=embeds, **options).last_hidden_state[:, -1]
    return Reading(cache, model.lm_head(last), positions[None, :, -1:] + 1, mask.bool(), noted[0])


def predictions(tokens: int, max_tokens: int) -> int:
    """How many predictions `greedy` makes for one row of `tokens` tokens and its end."""
    return min(max_tokens + 1, -(-(tokens + 1) // _CHECK_EVERY) * _CHECK_EVERY)


def write(
    text_model: nn.Module,
    lm_head: nn.Module,
    readings: Sequence[Reading],
    end: list[int],
    tokens: int,
    pad: int | None = None,
    penalty: float = 1.0,
    layer: int | None = None,
    compiled: bool = False,
    stop: Callable[[Steps], bool] | None = None,
) -> Steps:
    """Steps that have written at most `tokens` tokens a row after prompts, until all rows have an `end`.

    `penalty`: by what the scores of tokens that a row holds already are divided (negative ones multiplied). `layer`:
    whose states are kept. `stop`: whether to stop, asked before each step. The readings are used up, and what is
    returned is overwritten by the next batch. Other arguments as in `greedy`.
    """
    steps = steps_for(text_model, lm_head, readings, end, tokens, pad, penalty, layer, compiled)
    stop = _Finished(steps.finished.device) if stop is None else stop
    steps.begin(readings)
    while steps.done < tokens and not stop(steps):
        steps.advance()
    return steps


class _Finished:
    """Whether all rows are finished; on a device that works ahead, whether they were a step ago: nobody waits. On a
    CPU, where a row costs time, finished ones leave.
    """

    def __init__(self, device: torch.device) -> None:
        self.ahead = device.type != "cpu"
        self.flag = torch.zeros((), dtype=torch.bool, pin_memory=self.ahead)
        self.event = torch.get_device_module(device).Event() if self.ahead else None

    def __call__(self, steps: Steps) -> bool:
        if self.event is None:
            if steps.done % _CHECK_EVERY == 0:
                steps.drop_finished()
            return bool(steps.finished.all())
        self.event.synchronize()
        before = bool(self.flag)
        self.flag.copy_(steps.finished.all(), non_blocking=True)
        self.event.record()
        return before


def _all_finished(finished: Tensor, synced: bool) -> bool:
    flag = finished.all().int()
    if synced and torch.distributed.is_initialized():
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag)


def _cut(
    ids: Tensor, states: Tensor, prompt: Tensor, ends: Tensor, max_tokens: int, counted_ends: Tensor
) -> _GenerateOutput:
    """Rows up to their end token. `states[:, i]` chose token i, and is the state at the position of token i - 1."""
    stopped = torch.isin(ids, ends)
    lengths = torch.where(stopped.any(1), stopped.int().argmax(1), ids.shape[1]).clamp(max=max_tokens)
    counted = torch.isin(ids.gather(1, lengths[:, None])[:, 0], counted_ends) & (lengths < max_tokens)
    chosen = (lengths + counted).tolist()
    lengths = lengths.tolist()
    return _GenerateOutput(
        ids=[row[:n] for row, n in zip(ids, lengths, strict=True)],
        at=[row[1 : n + 1] for row, n in zip(states, lengths, strict=True)],
        predicting=[row[:n] for row, n in zip(states, chosen, strict=True)],
        after=[row[n:] for row, n in zip(states, chosen, strict=True)],
        prompt=prompt,
    )
