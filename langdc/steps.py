"""The steps that write tokens: of constant shapes, so that a CUDA device replays them as one graph.

Letters: A rotary axes, B rows, G key heads, L layers, K keys, E head width, V vocabulary, Z width.
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
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer

from langdc.attention import attending
from langdc.log import get_logger

logger = get_logger(__name__)

_BUCKET = 64
"""Key counts K of graphs are multiples of it, of long prompts of an eighth, so that similar ones share a graph."""
_KEPT = 8
"""Graphs kept per model, those used last."""
_KEPT_BYTES = 1 << 32
"""Their keys and values; the graph used last is kept whatever it takes."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Prompts that were read: their `cache`, the `logits` [B,V] after them and the `positions` [A,B,1] of the next
    tokens. `real` [B,K]: false at padding; None: there is none. `states` [B,M,Z]: inputs of the layer that is noted.
    """

    cache: Cache
    logits: Tensor
    positions: Tensor
    real: Tensor | None = None
    states: Tensor | None = None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    *,
    steps: "Steps",
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention [B,1,h,E] of one new query per row. The h query heads of a key head are its rows: no key is repeated,
    and a few short products are faster than one kernel for long prompts.
    """
    rows, heads, _, width = query.shape
    layer: Any = module.layer_idx
    shown = steps.layers[layer].shown
    hidden = steps.hidden[layer][..., shown]
    if sliding_window is not None:
        hidden = hidden | (steps.order[shown] <= steps.place - sliding_window)
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width) * scaling
    scores = torch.matmul(grouped, key.transpose(2, 3)).float().masked_fill(hidden.to(key.device), -torch.inf)
    found = torch.matmul(scores.softmax(-1).to(value.dtype), value)
    return found.view(rows, 1, heads, width), None


AttentionInterface.register("langdc_step", _attention)


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
def noting(text_model: Any, layer: int | None, note: Callable[[Tensor], Any]) -> Iterator[None]:
    """Note the states [B,n,Z] that go into a layer; hidden states of all layers would be kept otherwise."""
    if layer is None:
        yield
        return
    if layer < len(text_model.layers):
        hook = text_model.layers[layer].register_forward_pre_hook(lambda _, given: note(given[0]))
    else:
        hook = text_model.register_forward_hook(lambda _, __, found: note(found.last_hidden_state))
    try:
        yield
    finally:
        hook.remove()


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
        self.start, self.shown = 0, slice(None)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys[:, :, self.shown], self.values[:, :, self.shown]


class Steps:
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
        self.layers = [_StaticLayer(rows, keys, each, self.place) for each in layers]  # pyright: ignore[reportArgumentType]
        self.cache, self.length = Cache(layers=[*self.layers]), 0
        self.hidden = torch.ones(len(layers), rows, 1, 1, keys, dtype=torch.bool, device=device)
        self.order = torch.arange(keys, device=device)
        self.token = torch.zeros(rows, dtype=torch.long, device=device)
        self.rows = torch.arange(rows, device=device)
        self.ids = torch.zeros(rows, tokens, dtype=torch.long, device=device)
        self.states = None if first.states is None else first.states.new_zeros(rows, tokens, first.states.shape[2])
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
        return sum(states.nbytes for layer in self.layers for states in (layer.keys, layer.values))

    def begin(self, readings: Sequence[Reading]) -> None:
        """Copy what was read of all rows' prompts, and choose the first tokens. Each layer's keys end at one place."""
        for kept in (self.finished, self.total, self.step, *([] if self.said is None else [self.said])):
            kept.zero_()
        self.hidden.fill_(True)
        length, at = _longest(readings), 0
        self.length = length
        self.place.fill_(length - 1)  # a step adds one first
        for layer in self.layers:
            layer.start = length
        for reading in readings:
            rows = slice(at, at + len(reading.logits))
            layers: Any = enumerate(zip(self.layers, reading.cache.layers, strict=True))
            for number, (kept, read) in layers:
                count = read.keys.shape[2]
                places = slice(length - count, length)
                kept.start = min(kept.start, places.start)
                kept.keys[rows, :, places] = read.keys
                kept.values[rows, :, places] = read.values
                self.hidden[number, rows, 0, 0, places] = False if reading.real is None else ~reading.real[:, -count:]
            self.positions[:, rows] = reading.positions - 1
            at = rows.stop
            reading.cache.layers.clear()
        if self.states is not None:
            self._note(torch.cat([reading.states[:, -1:] for reading in readings if reading.states is not None]))
        self._choose(torch.cat([reading.logits for reading in readings]))
        self.done = 1

    def advance(self) -> None:
        """Read the tokens written last, and write the next ones."""
        if self.graph is not None:
            self.graph.replay()
        else:
            for layer in self.layers:  # a graph attends to all places, of which the mask hides the empty ones
                layer.shown = slice(layer.start, self.length + self.done)
            with self.ready():
                self.run()
        self.done += 1

    @contextmanager
    def ready(self) -> Iterator[None]:
        """For calls of `run`, which is free of Python objects that change."""
        with attending(self.text_model.config, "langdc_step"), noting(self.text_model, self.layer, self._note):
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
        for layer in self.layers:
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


_graphs: WeakKeyDictionary[nn.Module, OrderedDict[tuple, Steps | None]] = WeakKeyDictionary()  # None: it has none


def steps_for(
    text_model: nn.Module,
    lm_head: nn.Module,
    readings: Sequence[Reading],
    end: list[int],
    tokens: int,
    pad: int | None,
    penalty: float,
    layer: int | None,
    compiled: bool,
) -> Steps:
    """Steps to continue readings: captured ones where a card can replay them, made once for each bucket of K."""
    keys, device = _longest(readings) + tokens, readings[0].logits.device

    def made() -> Steps:
        return Steps(text_model, lm_head, readings, keys, tokens, end, pad, penalty, layer)

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
