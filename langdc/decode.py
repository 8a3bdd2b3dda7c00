"""Greedy batches in steps of constant shapes, which a CUDA device replays as one graph.

Letters: A rotary axes, B rows, G key heads, L layers, M prompt length, K keys, E head width, V vocabulary, Z width.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from langdc.log import get_logger

logger = get_logger(__name__)

_CHECK_EVERY = 8
"""Steps between reads of the stop flags, each of which waits for the device."""
_BUCKET = 64
"""Key counts K of graphs are multiples of it, of long prompts of an eighth, so that similar ones share a graph."""
_KEPT = 8
"""Graphs kept per model, those used last."""
_KEPT_BYTES = 1 << 32
"""Their keys and values; the graph used last is kept whatever it takes."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Prompts that were read: their `cache`, the `logits` [B,V] after them and the `positions` [A,B,1] of the next
    tokens. `real` [B,K]: false at padding; None: there is none. `state` [B,1,Z]: of the layer that is noted.
    """

    cache: Cache
    logits: Tensor
    positions: Tensor
    real: Tensor | None = None
    state: Tensor | None = None


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
    All layers are run, since the head needs them, but only that layer's states are kept.
    `synced`: all ranks of a sharded model run the same number of steps. `counted_ends`: those of `end` that count as
    one of the `max_tokens`, so that the state that chose them is kept. `pad`: the token of rows after their end.
    `compiled`: on CUDA, by kernels that torch.compile makes, in half a minute for each new shape.
    """
    layer = layer if layer >= 0 else model.config.num_hidden_layers + 1 + layer
    reading = _read(model, embeds, mask, layer)

    def stop(steps: _Steps) -> bool:
        if steps.done % _CHECK_EVERY:
            return False
        stopped = _all_finished(steps.finished, synced)
        if not stopped and pad is None and not counted_ends:  # states after the end are asked for otherwise
            steps.drop_finished()
        return stopped

    steps = write(model.model, model.lm_head, [reading], end, max_tokens + 1, pad, 1.0, layer, compiled, stop)
    assert steps.states is not None
    ids, states = steps.ids[:, : steps.done].clone(), steps.states[:, : steps.done].clone()  # the next batch overwrites
    ends = torch.tensor(end, device=embeds.device)
    return _cut(ids, states, ends, max_tokens, ends.new_tensor(counted_ends))


def _read(model: PreTrainedModel, embeds: Tensor, mask: Tensor, layer: int) -> Reading:
    positions, noted = (mask.cumsum(1) - 1).clamp(min=0), []
    cache = DynamicCache()
    options = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
    # of the last layer's feed-forward part only the last position is read
    cut = model.model.layers[-1].mlp.register_forward_pre_hook(lambda _, given: (given[0][:, -1:],))
    with cut, _noting(model.model, layer, noted.append):
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
    stop: "Callable[[_Steps], bool] | None" = None,
) -> "_Steps":
    """Steps that have written at most `tokens` tokens a row after prompts, until all rows have an `end`.

    `penalty`: by what the scores of tokens that a row holds already are divided (negative ones multiplied). `layer`:
    whose states are kept. `stop`: whether to stop, asked before each step. The readings are used up, and what is
    returned is overwritten by the next batch. Other arguments as in `greedy`.
    """
    steps = _steps(text_model, lm_head, readings, end, tokens, pad, penalty, layer, compiled)
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

    def __call__(self, steps: "_Steps") -> bool:
        if self.event is None:
            if steps.done % _CHECK_EVERY == 0:
                steps.drop_finished()
            return bool(steps.finished.all())
        self.event.synchronize()
        before = bool(self.flag)
        self.flag.copy_(steps.finished.all(), non_blocking=True)
        self.event.record()
        return before


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    *,
    steps: "_Steps",
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention [B,1,h,E] of one new query per row. The h query heads of a key head are its rows: no key is repeated,
    and a few short products are faster than one kernel for long prompts.
    """
    rows, heads, _, width = query.shape
    hidden = steps.hidden[module.layer_idx]  # pyright: ignore[reportArgumentType]
    if sliding_window is not None:
        hidden = hidden | (steps.order <= steps.place - sliding_window)
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width) * scaling
    scores = torch.matmul(grouped, key.transpose(2, 3)).float().masked_fill(hidden.to(key.device), -torch.inf)
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


@contextmanager
def _noting(text_model: Any, layer: int | None, note: Callable[[Tensor], Any]) -> Iterator[None]:
    """Note the last states [B,1,Z] that go into a layer; hidden states of all layers would be kept otherwise."""
    if layer is None:
        yield
        return
    if layer < len(text_model.layers):
        hook = text_model.layers[layer].register_forward_pre_hook(lambda _, given: note(given[0][:, -1:]))
    else:
        hook = text_model.register_forward_hook(lambda _, __, found: note(found.last_hidden_state[:, -1:]))
    try:
        yield
    finally:
        hook.remove()


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


class _StaticLayer(DynamicLayer):
    """A layer's keys and values [B,G,K,E], which stay where they are in memory; new ones are put at `place` [1]."""

    keys: Tensor
    values: Tensor

    def __init__(self, rows: int, count: int, like: DynamicLayer, place: Tensor) -> None:
        super().__init__()
        assert like.keys is not None and like.values is not None
        self.lazy_initialization(like.keys, like.values)
        self.keys, self.values = (
            states.new_zeros(rows, states.shape[1], count, states.shape[3]) for states in (like.keys, like.values)
        )
        self.place = place.to(self.keys.device)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values


class _Steps:
    """Steps of a batch of B rows with at most `keys` keys; what they read and write stays where it is in memory.

    `ids` [B,n] and `states` [B,n,Z] of the `done` steps so far; `finished` [B]; `total`: the sum of the chosen tokens'
    scores, which is finite if all were.
    """

    def __init__(
        self,
        text_model: Any,
        lm_head: nn.Module,
        like: Sequence[Reading],
        keys: int,
        tokens: int,
        end: list[int],
        pad: int | None,
        penalty: float,
        layer: int | None,
    ) -> None:
        first, rows = like[0], sum(len(reading.logits) for reading in like)
        axes, device, layers = len(first.positions), first.logits.device, first.cache.layers
        parts: tuple[Any, Any, Any] = text_model, lm_head, text_model.get_input_embeddings()
        self.text_model, self.lm_head, self.embed = parts
        self.layer, self.pad, self.penalty, self.ends = layer, pad, penalty, torch.tensor(end, device=device)
        self._count(torch.zeros(2 + axes * rows, dtype=torch.long, device=device), axes)
        self.cache = Cache(layers=[_StaticLayer(rows, keys, each, self.place) for each in layers])  # pyright: ignore[reportArgumentType]
        self.hidden = torch.ones(len(layers), rows, 1, 1, keys, dtype=torch.bool, device=device)
        self.order = torch.arange(keys, device=device)
        self.token = torch.zeros(rows, dtype=torch.long, device=device)
        self.rows = torch.arange(rows, device=device)
        self.ids = torch.zeros(rows, tokens, dtype=torch.long, device=device)
        self.states = None if first.state is None else first.state.new_zeros(rows, tokens, first.state.shape[2])
        self.said = None if penalty == 1 else torch.zeros_like(first.logits, dtype=torch.bool).repeat(rows, 1)[:rows]
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.total = torch.zeros((), device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.done = 0

    def _count(self, counters: Tensor, axes: int) -> None:
        """What every step adds one to: the places in the cache and in `ids` [1], and the positions [A,B,1] of rows."""
        self.counters = counters
        self.place, self.step, positions = counters.split([1, 1, len(counters) - 2])
        self.positions = positions.view(axes, -1, 1)

    @property
    def bytes(self) -> int:
        """Of keys and values."""
        layers: Any = self.cache.layers
        return sum(states.nbytes for layer in layers for states in (layer.keys, layer.values))

    def begin(self, readings: Sequence[Reading]) -> None:
        """Copy what was read of all rows' prompts, and choose the first tokens. Each layer's keys end at one place."""
        for kept in (self.finished, self.total, self.step, *([] if self.said is None else [self.said])):
            kept.zero_()
        self.hidden.fill_(True)
        length, at = _longest(readings), 0
        self.place.fill_(length - 1)  # a step adds one first
        for reading in readings:
            rows = slice(at, at + len(reading.logits))
            layers: Any = enumerate(zip(self.cache.layers, reading.cache.layers, strict=True))
            for number, (kept, read) in layers:
                count = read.keys.shape[2]
                places = slice(length - count, length)
                kept.keys[rows, :, places] = read.keys
                kept.values[rows, :, places] = read.values
                self.hidden[number, rows, 0, 0, places] = False if reading.real is None else ~reading.real[:, -count:]
            self.positions[:, rows] = reading.positions - 1
            at = rows.stop
            reading.cache.layers.clear()
        if self.states is not None:
            self._note(torch.cat([reading.state for reading in readings if reading.state is not None]))
        self._choose(torch.cat([reading.logits for reading in readings]))
        self.done = 1

    def advance(self) -> None:
        """Read the tokens written last, and write the next ones."""
        if self.graph is not None:
            self.graph.replay()
        else:
            with self.ready():
                self.run()
        self.done += 1

    @contextmanager
    def ready(self) -> Iterator[None]:
        """For calls of `run`, which is free of Python objects that change."""
        with _attending(self.text_model.config, "langdc_step"), _noting(self.text_model, self.layer, self._note):
            yield

    def run(self) -> None:
        """The step itself: tensors of constant shapes."""
        self.counters += 1
        self.hidden.index_fill_(4, self.place, False)
        options = {"past_key_values": self.cache, "use_cache": True, "steps": self}
        positions = self.positions if len(self.positions) > 1 else self.positions[0]
        embeds = self.embed(self.token)[:, None]
        last = self.text_model(inputs_embeds=embeds, position_ids=positions, **options).last_hidden_state
        self._choose(self.lm_head(last[:, 0]))

    def _note(self, states: Tensor) -> None:
        assert self.states is not None
        self.states.index_put_((self.rows, self.step), states[:, 0])

    def _choose(self, logits: Tensor) -> None:
        if self.said is not None:
            logits = logits.float()
            punished = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
            logits = torch.where(self.said, punished, logits)
        best, token = logits.max(-1)
        if self.pad is not None:
            token = torch.where(self.finished, self.pad, token)
        if self.said is not None:
            self.said.scatter_(1, token[:, None], True)
        self.total += best.sum(dtype=torch.float32)
        self.finished |= torch.isin(token, self.ends)
        self.token.copy_(token)
        self.ids.index_put_((self.rows, self.step), token)

    def drop_finished(self) -> None:
        """Go on without rows that have ended, where they are half of all or more; a graph keeps its shapes."""
        left = (~self.finished).nonzero()[:, 0]
        if self.graph is not None or not 0 < 2 * len(left) <= len(self.finished):
            return
        axes, positions = len(self.positions), self.positions[:, left].flatten()
        self._count(torch.cat([self.place, self.step, positions]), axes)
        layers: Any = self.cache.layers
        for layer in layers:
            layer.keys, layer.values = layer.keys[left.to(layer.keys.device)], layer.values[left.to(layer.keys.device)]
            layer.place = self.place.to(layer.keys.device)
        self.hidden = self.hidden[:, left]
        for name in ("token", "rows", "finished", *([] if self.said is None else ["said"])):
            setattr(self, name, getattr(self, name)[left])

    def capture(self, compiled: bool) -> None:
        """Record a step as a graph, which is replayed from then on; `compiled`: with fused kernels."""
        run = torch.compile(self.run, fullgraph=True, dynamic=False) if compiled else self.run
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with self.ready(), nullcontext() if compiled else _fused_norms(self.text_model):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                run()
        self.graph = graph


def _longest(readings: Sequence[Reading]) -> int:
    layers: Any = [layer for reading in readings for layer in reading.cache.layers]
    return max(layer.keys.shape[2] for layer in layers)


_graphs: WeakKeyDictionary[nn.Module, OrderedDict[tuple, _Steps | None]] = WeakKeyDictionary()  # None: it has none


def _steps(
    text_model: nn.Module,
    lm_head: nn.Module,
    readings: Sequence[Reading],
    end: list[int],
    tokens: int,
    pad: int | None,
    penalty: float,
    layer: int | None,
    compiled: bool,
) -> _Steps:
    """Steps to continue readings: captured ones where a card can replay them, made once for each bucket of K."""
    keys, device = _longest(readings) + tokens, readings[0].logits.device

    def made() -> _Steps:
        return _Steps(text_model, lm_head, readings, keys, tokens, end, pad, penalty, layer)

    if device.type != "cuda" or text_model.training or tokens == 1:
        return made()
    bucket = max(_BUCKET, (1 << keys.bit_length()) // 16)
    keys = -(-keys // bucket) * bucket
    # a graph reads weights where they were when it was made
    weights = hash(tuple(parameter.data_ptr() for part in (text_model, lm_head) for parameter in part.parameters()))
    rows, like = sum(len(reading.logits) for reading in readings), readings[0].logits
    key = (compiled, rows, keys, tokens, layer, tuple(end), pad, penalty, like.dtype, device, weights)
    kept = _graphs.setdefault(text_model, OrderedDict())
    if key not in kept:
        found = made()
        while kept and (len(kept) >= _KEPT or sum(s.bytes for s in (found, *kept.values()) if s) > _KEPT_BYTES):
            kept.popitem(last=False)
        try:
            found.capture(compiled)
            found.text_model = found.lm_head = found.embed = None  # no more needed; what is kept would keep the model
        except RuntimeError as error:
            logger.warning("Tokens are written without a CUDA graph, which is slower: %s", error)
            found = None
        kept[key] = found
    kept.move_to_end(key)
    return kept[key] or made()
