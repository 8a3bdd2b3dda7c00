"""Greedy batches in steps of constant shapes, which a CUDA device replays as one graph.

Letters: B rows, M prompt length, K keys, Z width.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel, StaticCache

from langdc.log import get_logger

logger = get_logger(__name__)

_CHECK_EVERY = 8
"""Steps between reads of the stop flags, each of which waits for the device."""
_BUCKET = 64
"""Key counts K are multiples of it, so that prompts of similar lengths share a graph."""
_KEPT = 8
"""Graphs kept per model, those used last."""


@dataclass(frozen=True, eq=False)
class _GenerateOutput:
    """Greedily written tokens: `ids` per row without the end token; `at` and `predicting`, [n,Z] per row.

    `at`: the state at the position whose input is the token; `predicting`: the state before it, which chose it; with
    one more [n+1,Z] for an end token of `greedy(counted_ends=...)`. `after` [*,Z]: states of all later steps.
    """

    ids: list[Tensor]
    at: list[Tensor]
    predicting: list[Tensor]
    after: list[Tensor]


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
    `synced`: all ranks of a sharded model run the same number of steps. `counted_ends`: those of `end` that count as
    one of the `max_tokens`, so that the state that chose them is kept. `pad`: the token of rows after their end.
    `compiled`: on CUDA, by kernels that torch.compile makes, in half a minute for each new shape.
    """
    ends, done = torch.tensor(end, device=embeds.device), 1
    steps = _steps(model, embeds, max_tokens, layer, end, pad, compiled)
    steps.read(embeds, mask)
    while done <= max_tokens and not (done % _CHECK_EVERY == 0 and _all_finished(steps.finished, synced)):
        steps.advance()
        done += 1
    ids, states = steps.ids[:, :done].clone(), steps.states[:, :done].clone()  # the next batch overwrites them
    return _cut(ids, states, ends, max_tokens, ends.new_tensor(counted_ends))


def predictions(tokens: int, max_tokens: int) -> int:
    """How many predictions `greedy` makes for one row of `tokens` tokens and its end."""
    return min(max_tokens + 1, -(-(tokens + 1) // _CHECK_EVERY) * _CHECK_EVERY)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **others: Any
) -> tuple[Tensor, None]:
    """Attention [B,1,h,E] of one new query per row. The h query heads of a key head are its rows: no key is repeated,
    and a few short products are faster than one kernel for long prompts.
    """
    rows, heads, _, width = query.shape
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width) * scaling
    scores = torch.matmul(grouped, key.transpose(2, 3)).float().masked_fill(~mask, -torch.inf)
    found = torch.matmul(scores.softmax(-1).to(value.dtype), value)
    return found.view(rows, 1, heads, width), None


AttentionInterface.register("langdc_step", _attention)


@contextmanager
def _attending(config: Any, name: str) -> Iterator[None]:
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _fused_norms(model: nn.Module) -> Iterator[None]:
    """Let the RMS norms of a model be one kernel each, instead of six, for a while."""
    norms: list[Any] = [part for part in model.modules() if type(part).__name__.endswith("RMSNorm")]
    for norm in norms:
        norm.forward = partial(
            F.rms_norm, normalized_shape=norm.weight.shape, weight=norm.weight, eps=norm.variance_epsilon
        )
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _all_finished(finished: Tensor, synced: bool) -> bool:
    flag = finished.all().int()
    if synced and torch.distributed.is_initialized():
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag)


def _cut(ids: Tensor, states: Tensor, ends: Tensor, max_tokens: int, counted_ends: Tensor) -> _GenerateOutput:
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
    )


class _Steps:
    """Steps of a batch of B rows with at most `keys` keys; what they read and write stays where it is in memory.

    `ids` [B,n] and `states` [B,n,Z] of the steps so far; `finished` [B].
    """

    def __init__(
        self, model: PreTrainedModel, like: Tensor, keys: int, steps: int, layer: int, end: list[int], pad: int | None
    ) -> None:
        rows, width, device = like.shape[0], like.shape[2], like.device
        config: Any = model.config
        self.model, self.pad, self.ends = model, pad, torch.tensor(end, device=device)
        self.layer = layer if layer >= 0 else config.num_hidden_layers + 1 + layer
        self.cache = StaticCache(config=config, max_cache_len=keys)
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.cache.early_initialization(rows, config.num_key_value_heads, head, like.dtype, device)
        self.mask = torch.zeros(rows, 1, 1, keys, dtype=torch.bool, device=device)
        self.position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.token = torch.zeros(rows, dtype=torch.long, device=device)
        self.place, self.step = (torch.zeros(1, dtype=torch.long, device=device) for _ in range(2))
        self.ids = torch.zeros(rows, steps, dtype=torch.long, device=device)
        self.states = like.new_zeros(rows, steps, width)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.embed = model.get_input_embeddings()
        self.graph: torch.cuda.CUDAGraph | None = None

    def read(self, embeds: Tensor, real: Tensor) -> None:
        """Read the prompts `embeds` [B,M,Z], `real` [B,M] 1 where they are no padding, and write their first tokens."""
        length = embeds.shape[1]
        for counter in (self.finished, self.step, self.mask):
            counter.zero_()
        self.mask[:, 0, 0, :length] = real.bool()
        self.place.fill_(length)
        positions = (real.cumsum(1) - 1).clamp(min=0)
        self.position.copy_(positions[:, -1:])
        prompt = DynamicCache(config=self.model.config)
        with self._noting():
            self._write(embeds, real, positions, prompt)
        layers: Any = zip(self.cache.layers, prompt.layers, strict=True)
        for kept, read in layers:
            kept.keys[:, :, :length] = read.keys
            kept.values[:, :, :length] = read.values
            kept.cumulative_length.fill_(length)

    def advance(self) -> None:
        """Read the tokens written last, and write the next ones."""
        if self.graph is not None:
            self.graph.replay()
        else:
            with self.ready():
                self.run()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """For calls of `run`, which is free of Python objects that change."""
        with _attending(self.model.config, "langdc_step"), self._noting():
            yield

    def run(self) -> None:
        """The step itself: tensors of constant shapes."""
        self.mask.index_fill_(3, self.place, True)
        embeds = self.embed(self.token)[:, None]
        self.place += 1
        self.position += 1
        self._write(embeds, self.mask, self.position, self.cache)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Note what goes into a layer; hidden states of all layers would be kept otherwise."""
        layers: Any = self.model.model.layers
        with ExitStack() as hooks:
            if self.layer < len(layers):
                hooks.callback(layers[self.layer].register_forward_pre_hook(self._note).remove)
            yield

    def _note(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.states.index_copy_(1, self.step, given[0][:, -1:])

    def _write(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> None:
        options = {"position_ids": positions, "past_key_values": cache, "use_cache": True}
        last = self.model.model(inputs_embeds=embeds, attention_mask=mask, **options).last_hidden_state[:, -1:]
        if self.layer == self.model.config.num_hidden_layers:
            self.states.index_copy_(1, self.step, last)
        token = self.model.lm_head(last[:, 0]).argmax(-1)
        if self.pad is not None:
            token = torch.where(self.finished, self.pad, token)
        self.finished |= torch.isin(token, self.ends)
        self.token.copy_(token)
        self.ids.index_copy_(1, self.step, token[:, None])
        self.step += 1

    def capture(self, compiled: bool) -> None:
        """Record a step as a graph, which is replayed from then on; `compiled`: with fused kernels."""
        blank = self.states.new_zeros(len(self.ids), 1, self.states.shape[2])
        self.read(blank, torch.ones_like(self.position))
        run = torch.compile(self.run, fullgraph=True, dynamic=False) if compiled else self.run
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with self.ready(), nullcontext() if compiled else _fused_norms(self.model):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                run()
        self.graph = graph


_graphs: WeakKeyDictionary[PreTrainedModel, OrderedDict[tuple, _Steps]] = WeakKeyDictionary()


def _steps(
    model: PreTrainedModel,
    embeds: Tensor,
    max_tokens: int,
    layer: int,
    end: list[int],
    pad: int | None,
    compiled: bool,
) -> _Steps:
    """Steps for prompts `embeds`: captured ones where a card can replay them, made once for each bucket of K."""
    keys = -(-(embeds.shape[1] + max_tokens) // _BUCKET) * _BUCKET
    sizes = (keys, max_tokens + 1, layer, end, pad)
    if embeds.device.type != "cuda" or model.training:
        return _Steps(model, embeds, *sizes)
    # a graph reads weights where they were when it was made
    weights = hash(tuple(parameter.data_ptr() for parameter in model.parameters()))
    key = (compiled, len(embeds), keys, max_tokens, layer, tuple(end), pad, embeds.dtype, embeds.device, weights)
    kept = _graphs.setdefault(model, OrderedDict())
    if key not in kept:
        made = _Steps(model, embeds, *sizes)
        try:
            made.capture(compiled)
        except RuntimeError as error:
            logger.warning("Captions are written without a CUDA graph, which is slower: %s", error)
            made = _Steps(model, embeds, *sizes)
        kept[key] = made
        while len(kept) > _KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
