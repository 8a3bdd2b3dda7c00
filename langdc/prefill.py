"""Chunked prefill: videos are read chunk by chunk, with a KV compressor after each chunk; text is read as it is.

Letters: A rotary axes, B batch, M prompt+video length, D width, n tokens, G key heads, K keys cached, V vocabulary.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from langdc.attention import Observer, using
from langdc.chunks import PerVideo, chunks_of, numbers_in_frames
from langdc.flops import Counted
from langdc.interfaces import KVCompressor, LayerCompressor, Rows
from langdc.kvcache import KVCache
from langdc.rope import Rope
from langdc.types import Chunk, Plan
from langdc.walk import Walk, check_walk

Arguments = Callable[[Tensor], Mapping[str, Any]]
"""From rows of the prompt to further keyword arguments of the text model for them, such as DeepStack features."""


@dataclass(eq=False)
class ReplySteps:
    """What a KV compressor lets the tokens of one reply read. `unread`: how many keys it left out, over all tokens and
    layers; `flops`: what it took to choose.
    """

    compressor: KVCompressor
    unread: int = 0
    flops: float = 0.0
    _of_a_key: dict[int, float] = field(default_factory=dict)

    def read(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Of a layer's keys and values [1,G,K,E], those that a token with this query [1,h,1,E] attends to."""
        # operations are counted once; counting takes longer than they do, and they grow with the keys
        with nullcontext() if layer in self._of_a_key else Counted() as counted:
            rows = self.compressor.step(layer, query, key)
        each = self._of_a_key.setdefault(layer, counted.total / key.shape[2] if counted else 0.0)
        self.flops += each * key.shape[2]
        if rows is None:
            return key, value
        self.unread += key.shape[2] - len(rows)
        rows = rows.to(key.device, non_blocking=True)
        return key.index_select(2, rows), value.index_select(2, rows)


@dataclass(eq=False)
class PrefillOutput:
    """A prompt that was read: its `cache`, the `logits` [1,V] after its last token, and the `next_position` [A,1,1]."""

    text_model: PreTrainedModel
    lm_head: nn.Module
    cache: KVCache
    logits: Tensor
    next_position: Tensor
    offset_axes: int = 0
    """How many axes of later tokens are offset per layer; 0 where the cache has no gaps left."""
    calls: tuple[tuple[int, float, int, int], ...] = ()
    """Per call of the text model: tokens read, keys cached before on average, by how many of its layers, and how many
    of the tokens their feed-forward parts read."""
    kept_rows: tuple[Tensor, ...] = ()
    """Per layer, the rows of the prompt whose keys it holds: [K], or [G,K] where key heads differ."""
    scoring_flops: float = 0.0
    """FLOPs of the compressors' scores."""
    steps: ReplySteps | None = None
    """Where a KV compressor chooses what the tokens of a reply read."""

    @property
    def keys_per_layer(self) -> list[int]:
        """Number of keys in each layer, text included."""
        return list(self.cache.lengths)


def prefill(
    text_model: PreTrainedModel,
    lm_head: nn.Module,
    embeds: Tensor,
    positions: Tensor,
    video: Tensor,
    compressor: KVCompressor | None = None,
    *,
    chunk_tokens: PerVideo = None,
    frame_tokens: PerVideo = None,
    anchor: Tensor | None = None,
    arguments: Arguments | None = None,
    layers: LayerCompressor | None = None,
    reply_axes: Literal["time", "all"] = "time",
) -> PrefillOutput:
    """Read a prompt `embeds` [M,D] at `positions` [A,1,M].

    `video` [M]: true at video tokens, each run of them one video; or video ids, where text stands between the frames
    of a video, and -1 at text. `chunk_tokens`: video tokens per chunk (see `tokens_per_chunk`); None: a whole video.
    `frame_tokens`: tokens per frame, where all frames have the same number. `anchor` [M]: tokens to keep first.
    `arguments`: further arguments of the text model for given rows. `layers`: drops rows between layers, in each chunk
    by itself, or in all videos at once. `reply_axes`: the axes in which written tokens follow a compacted video
    directly, "time" or "all" (one released model). ValueError for inputs that do not fit.
    Where nothing is evicted, and no `chunk_tokens` are given, everything is read at once; for a compressor with
    `decoding` too. The device is waited for before the first chunk, and after a chunk only where scores decide how many
    keys each layer keeps.
    """
    _check(embeds, positions, video)
    chunks = ()
    if compressor is not None or chunk_tokens is not None:
        anchor = None if anchor is None else anchor.cpu()
        chunks = tuple(chunks_of(video.cpu(), chunk_tokens, frame_tokens, anchor))
    reader = _ChunkedPrefill(text_model, embeds, positions, arguments)
    reader.layers, reader.video_id, steps = layers, video.long() - 1 if video.dtype == torch.bool else video, None
    if layers is not None and "frames" in layers.needs:
        numbers = numbers_in_frames(video.cpu(), frame_tokens)
        reader.in_frame = None if numbers is None else numbers.to(embeds.device)
    if compressor is not None and chunks:
        config = text_model.config
        compressor.begin(Plan(chunks, embeds, config.num_hidden_layers, config.num_key_value_heads))
        if compressor.active and compressor.decoding:
            steps = ReplySteps(copy(compressor))
        elif compressor.active:
            reader.compressor = compressor
        chunks = chunks if reader.compressor is not None else ()
    check_inside(text_model, reader.compressor if steps is None else compressor, layers)
    with torch.no_grad(), using(text_model):
        logits = lm_head(reader.read(chunks, close_gaps=reply_axes == "time"))
    reader.cache.fit()
    offset_axes = len(positions) if reader.continuous else 0
    held = [layer.rows for layer in reader.cache.keyed if layer.rows is not None]
    kept_rows = tuple(rows[0] if len(rows) == 1 else rows for rows in held)
    costs = (tuple(reader.calls), kept_rows, reader.scoring_flops, steps)
    return PrefillOutput(text_model, lm_head, reader.cache, logits, reader.next_position, offset_axes, *costs)


def check_inside(text_model: Any, kv: KVCompressor | None, layers: LayerCompressor | None) -> None:
    """ValueError for compressors that cannot work in a language model, or not together, whatever the prompt."""
    kinds = set(getattr(text_model.config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", *["linear_attention"] * (kv is None)}:
        raise ValueError(
            f"The model has layers of kind {', '.join(sorted(kinds))}; keys can be evicted only from full ones. Leave "
            "out the KV compressor; with sliding windows, also options of generation beside max_new_tokens."
        )
    if kv is not None:
        kv.check(text_model.config.num_hidden_layers)
    if layers is not None:
        check_walk(text_model, layers)
        mine, other = type(kv).__name__, type(layers).__name__
        if kv is not None and kv.decoding:
            raise ValueError(
                f"{mine} chooses in one layer what the next ones read of a video, and {other} leaves them other keys. "
                "Leave out one of them."
            )
        if kv is not None and kv.continuous:
            raise ValueError(
                f"{mine} moves keys together in time, which it cannot where {other} drops rows before. Set its "
                "compact_positions to false."
            )


def _check(embeds: Tensor, positions: Tensor, video: Tensor) -> None:
    if embeds.ndim != 2 or not len(embeds):
        raise ValueError(
            f"A prompt of shape {tuple(embeds.shape)} was given; chunked prefill takes one prompt at a time, as [M,D]. "
            "Ask questions one by one where a KV compressor is used."
        )
    if positions.ndim != 3 or positions.shape[1:] != (1, len(embeds)):
        raise ValueError(f"Positions have shape {tuple(positions.shape)}; a prompt of {len(embeds)} needs [A,1,M].")
    if video.shape != embeds.shape[:1]:
        raise ValueError(f"The video mask has shape {tuple(video.shape)}; the prompt has {len(embeds)} tokens.")
    if not torch.isfinite(embeds).all():
        raise ValueError("The prompt's embeddings hold NaN or infinity; look at the video's features.")


class _ChunkedPrefill:
    """Reads one prompt into a cache; a compressor observes each chunk and evicts keys."""

    def __init__(
        self, text_model: PreTrainedModel, embeds: Tensor, positions: Tensor, arguments: Arguments | None
    ) -> None:
        self.text_model, self.embeds, self.positions, self.arguments = text_model, embeds, positions, arguments
        self.rope = Rope(text_model.rotary_emb)  # pyright: ignore[reportArgumentType]
        config = text_model.config
        self.cache = KVCache(config.num_hidden_layers, self.rope, kinds=getattr(config, "layer_types", None) or ())
        self.compressor: KVCompressor | None = None
        self.layers: LayerCompressor | None = None
        self.video_id = positions.new_full(embeds.shape[:1], -1)
        self.in_frame: Tensor | None = None
        self.calls: list[tuple[int, float, int, int]] = []
        self.scoring_flops = 0.0
        self._scoring: dict[tuple, float] = {}
        self._chunk: Chunk | None = None
        self._walk: Walk | None = None
        self._unturning = None

    @property
    def next_position(self) -> Tensor:
        """Position of the first new token [A,1,1]: one after the largest of the prompt."""
        return (self.positions.max() + 1).expand(len(self.positions), 1, 1)

    @property
    def continuous(self) -> bool:
        """Whether the next tokens follow each layer's last key directly."""
        return self.compressor is not None and self.compressor.continuous

    def read(self, chunks: tuple[Chunk, ...], close_gaps: bool) -> Tensor:
        """Read the whole prompt: the last token's state [1,D]. `close_gaps`: text after a video needs no offset."""
        at, state = 0, self.embeds[:0]
        self.cache.room = len(self.embeds) if self.compressor is None and self.layers is None else 0
        for chunk in chunks:
            if chunk.rows.start > at:
                state = self._forward(self._rows(at, chunk.rows.start))
            state = self._read_chunk(chunk, len(self.embeds) - chunks[-1].rows.stop)
            at = chunk.rows.stop
        if chunks and self.continuous and close_gaps:
            whole = torch.cat([self.positions, self.next_position], 2)
            self.cache.close_gaps(int(whole[0, 0, at]))
            self.compressor = None
        return self._forward(self._rows(at, len(self.embeds))) if at < len(self.embeds) else state

    def _rows(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=self.embeds.device)

    def _given(self, rows: Tensor) -> Rows:
        """What a layer compressor gets of rows of the prompt; the last one asks."""
        video_id, shown = self.video_id[rows], int((self.video_id >= 0).sum())
        video_id[-1] = -1
        last = int(self._rows(0, len(rows)).masked_fill(video_id < 0, -1).max())
        in_frame = None if self.in_frame is None else self.in_frame[rows].masked_fill(video_id < 0, -1)
        sizes = len(self.cache.layers), shown, len(rows) - 1 - last
        return Rows(self.embeds[rows], rows, video_id, *sizes, in_frame=in_frame)

    def _forward(self, rows: Tensor, positions: Tensor | None = None, last: int = -1) -> Tensor:
        """Run the text model on rows of the prompt; returns the state [1,D] of the row with index `last` among them."""
        positions = self.positions[:, :, rows] if positions is None else positions
        self.cache.announce(positions, self.continuous, rows=rows)
        if self._chunk is not None and self.compressor is not None and self.compressor.position_free:
            self._unturning = self.rope.angles(-positions, self.rope.scaling**2)
        self._walk, given = None, self._given(rows) if self.layers is not None else None
        if self.layers is not None and given is not None and len(given.video):
            self._walk = Walk(self.text_model, self.layers, self.cache, self, self.arguments)
            state = self._walk.read(given, positions)
            self.calls += self._walk.work
            self.scoring_flops += self._walk.scoring_flops
            return state[None]
        past = sum(self.cache.lengths) / len(self.cache.lengths)
        self.calls.append((len(rows), past, len(self.cache.layers), len(rows)))
        more = self.arguments(rows) if self.arguments else {}
        states = forward_text(self.text_model, self.embeds[None, rows], positions, self.cache, self, **more)
        return states[0, last][None]

    def _read_chunk(self, chunk: Chunk, question: int) -> Tensor:
        """Read a chunk, and evict keys; `question`: how many tokens of text follow the last video."""
        rows = self._rows(chunk.rows.start, chunk.rows.stop)
        if self.compressor is None:
            return self._forward(rows)
        length = len(self.embeds)
        window = min(self.compressor.question_window, question)
        chunk = replace(chunk, past=self.cache.lengths, question_window=window)
        positions = self.positions[:, :, rows]
        if window:
            rows = torch.cat([rows, self._rows(length - window, length)])
            positions = torch.cat([positions, self.compressor.question_positions(chunk, self.positions)], 2)
        self._chunk = chunk
        state = self._forward(rows, positions, len(chunk) - 1)
        self._chunk = None
        for layer, rows in enumerate(self.compressor.kept(chunk)):
            if self._walk is not None:
                rows = _those_that_came(rows, self._walk.came[layer], chunk.past[layer])
            old = self.cache.layers[layer].positions
            assert old is not None
            new = self.compressor.positions(chunk, layer, old)
            start = chunk.past[layer] if self.compressor.keeps_old else 0
            self.cache.keep(layer, rows, None if new is old else new, start)
        return state

    def before_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Let the compressor observe a chunk; returns the queries at the layer's own positions, and all keys."""
        chunk, compressor, whole = self._chunk, self.compressor, (key, value)
        if chunk is not None and compressor is not None:
            came = None if self._walk is None else self._walk.came[layer]
            count = len(chunk) if came is None else len(came) - chunk.question_window  # which is text
            span = slice(chunk.past[layer], chunk.past[layer] + count)
            asking = slice(count, None) if chunk.question_window else slice(0, count)
            asked, key, value = query[:, :, asking], key[:, :, span], value[:, :, span]
            if compressor.position_free:
                assert self._unturning is not None and self.cache.new_keys is not None
                cos, sin = (part.to(query.device) for part in self._unturning)
                cos, sin = (cos, sin) if came is None else (cos[:, came], sin[:, came])
                asked = self.rope.turn(asked, cos[:, asking], sin[:, asking])
                new = slice(count)
                key = self.rope.turn(self.cache.new_keys[:, :, new], cos[:, new], sin[:, new])
            # operations are counted where the shapes are new; counting takes longer than they do
            shapes = (layer, asked.shape, key.shape)
            with nullcontext() if shapes in self._scoring else Counted() as counted:
                compressor.observe(layer, asked, key, value)
            if came is not None:
                compressor.spread(came[:count], len(chunk))
            self.scoring_flops += self._scoring.setdefault(shapes, counted.total if counted else 0.0)
        return self.cache.apply_offset(layer, query), *whole


def _those_that_came(rows: Tensor, came: Tensor | None, past: int) -> Tensor:
    """Of rows [m] or [G,m] of a cache as if all of a chunk had come to the layer, those that did, as they stand in it.
    `came` [n]: which of the chunk's did, after the `past` older keys; None: all.
    """
    if came is None:
        return rows
    held = torch.cat([torch.arange(past, device=came.device), came + past])
    places = torch.searchsorted(held, rows.contiguous()).clamp(max=len(held) - 1)
    there = held[places] == rows
    return places[there] if rows.ndim == 1 else places[there].view(len(rows), -1)


def forward_text(
    text_model: PreTrainedModel, embeds: Tensor, positions: Tensor, cache: KVCache, observer: Observer, **arguments: Any
) -> Tensor:
    """Run a text model on the announced tokens `embeds` [B,n,D] at `positions` [A,B,n]: their states [B,n,D]."""
    return text_model(
        inputs_embeds=embeds,
        position_ids=positions if len(positions) > 1 else positions[0],
        past_key_values=cache,
        use_cache=True,
        observer=observer,
        **arguments,
    ).last_hidden_state
