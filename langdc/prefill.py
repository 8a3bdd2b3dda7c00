"""Reading a prompt in pieces: videos chunk by chunk with a KV compressor between the chunks, text as it stands.

Letters: A rotary axes, M prompt+video length, D backbone width, Q chunk length, n tokens, L layers, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from langdc.attention import Observer, using
from langdc.chunks import PerVideo, chunks_of
from langdc.flops import Counted
from langdc.interfaces import KVCompressor
from langdc.kvcache import KVCache
from langdc.rope import Rope
from langdc.types import Chunk, Plan

Arguments = Callable[[Tensor], Mapping[str, Any]]
"""From rows of the prompt to further keyword arguments of the text model for them (side features, for example)."""


@dataclass(eq=False)
class Reading:
    """A prompt that was read: its `cache`, the `logits` [1,V] after its last token, and where the next token stands.

    `following` [A,1,1]; `keys_per_layer`: how many keys each layer kept, text included.
    """

    text_model: PreTrainedModel
    lm_head: nn.Module
    cache: KVCache
    logits: Tensor
    following: Tensor
    moved_axes: int = 0
    """How many axes of later tokens follow the layers' time lines; 0 once the cache is settled."""
    calls: tuple[tuple[int, float], ...] = ()
    """Tokens read by each call of the text model, and keys cached before it, on average over layers."""
    origins: tuple[Tensor, ...] = ()
    """Per layer, the rows of the prompt that its keys came from: [K], or [G,K] where key heads differ."""
    scoring: float = 0.0
    """FLOPs that the compressor took to look at the chunks."""

    @property
    def keys_per_layer(self) -> list[int]:
        """Keys held by each layer."""
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
    later_axes: Literal["time", "all"] = "time",
) -> Reading:
    """Read a prompt `embeds` [M,D] whose tokens stand at `positions` [A,1,M].

    `video` [M]: true at video tokens, a run of them being one video; or numbers, the same for all tokens of a video
    even where text stands between its frames, and -1 at text. `chunk_tokens`: video tokens per chunk (see
    `tokens_per_chunk`), a whole video where None. `frame_tokens`: tokens of a frame, where all frames have as many.
    `anchor` [M]: tokens to keep first. `arguments`: what else the text model gets for given rows.
    `later_axes`: which axes of text after a video follow its shortened time line once it is being written; "all" is
    what one released model's code does.
    """
    _check(text_model, embeds, positions, video)
    chunks = tuple(chunks_of(video, chunk_tokens, frame_tokens, anchor))
    reader = Reader(text_model, embeds, positions, chunks, arguments or _nothing)
    if compressor is not None and chunks:
        config = text_model.config
        compressor.begin(Plan(chunks, embeds, config.num_hidden_layers, config.num_key_value_heads))
        reader.compressor = compressor if compressor.active else None
    with torch.no_grad(), using(text_model):
        logits = lm_head(reader.read(settle=later_axes == "time"))
    moved = len(positions) if reader.continuous else 0
    return Reading(
        text_model,
        lm_head,
        reader.cache,
        logits,
        reader.following,
        moved,
        tuple(reader.calls),
        tuple(reader.origins),
        reader.scoring,
    )


def _nothing(rows: Tensor) -> Mapping[str, Any]:
    return {}


def _check(text_model: PreTrainedModel, embeds: Tensor, positions: Tensor, video: Tensor) -> None:
    if embeds.ndim != 2 or not len(embeds):
        raise ValueError(
            f"A prompt of shape {tuple(embeds.shape)} was given; chunked reading takes one prompt at a time, as [M,D]. "
            "Ask questions one by one where a KV compressor is used."
        )
    if positions.ndim != 3 or positions.shape[1:] != (1, len(embeds)):
        raise ValueError(f"Positions have shape {tuple(positions.shape)}; a prompt of {len(embeds)} needs [A,1,M].")
    if video.shape != embeds.shape[:1]:
        raise ValueError(f"The video mask has shape {tuple(video.shape)}; the prompt has {len(embeds)} tokens.")
    if not torch.isfinite(embeds).all():
        raise ValueError("The prompt's embeddings hold NaN or infinity; look at the video's features.")
    kinds = set(getattr(text_model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(
            f"The model has layers of kind {', '.join(sorted(kinds))}; keys can be evicted only from full ones."
        )


class Reader:
    """Reads the pieces of one prompt into a cache, and lets a compressor look and evict."""

    def __init__(
        self,
        text_model: PreTrainedModel,
        embeds: Tensor,
        positions: Tensor,
        chunks: tuple[Chunk, ...],
        arguments: Arguments,
    ) -> None:
        self.text_model, self.embeds, self.positions = text_model, embeds, positions
        self.chunks, self.arguments = chunks, arguments
        self.rope = Rope(text_model.rotary_emb)  # pyright: ignore[reportArgumentType]
        self.cache = KVCache(text_model.config.num_hidden_layers, self.rope)
        self.compressor: KVCompressor | None = None
        self.calls: list[tuple[int, float]] = []
        self.scoring = 0.0
        self.origins = [torch.empty(0, dtype=torch.long, device=embeds.device)] * text_model.config.num_hidden_layers
        self._chunk: Chunk | None = None
        self._coming = positions

    @property
    def following(self) -> Tensor:
        """Where the first new token stands [A,1,1]: one further than everything in the prompt."""
        return (self.positions.max() + 1).expand(len(self.positions), 1, 1)

    @property
    def continuous(self) -> bool:
        """Whether what comes next goes on right after each layer's last key."""
        return self.compressor is not None and self.compressor.continuous

    def read(self, settle: bool) -> Tensor:
        """Read the whole prompt; the last token's state [1,D]. `settle`: text after the last video needs no lag."""
        at, state = 0, self.embeds[:0]
        for chunk in self.chunks:
            if chunk.rows.start > at:
                state = self._forward(self._rows(at, chunk.rows.start))
            state = self._read_chunk(chunk)
            at = chunk.rows.stop
        if self.chunks and self.continuous and settle:
            whole = torch.cat([self.positions, self.following], 2)
            self.cache.settle(int(whole[0, 0, at]))
            self.compressor = None
        return self._forward(self._rows(at, len(self.embeds))) if at < len(self.embeds) else state

    def _rows(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=self.embeds.device)

    def _forward(self, rows: Tensor, positions: Tensor | None = None, last: int = -1) -> Tensor:
        """Run the text model on rows of the prompt; the state [1,D] of the `last` of them."""
        self._coming = self.positions[:, :, rows] if positions is None else positions
        self.calls.append((len(rows), sum(self.cache.lengths) / len(self.cache.lengths)))
        self.origins = [torch.cat([origin, rows.expand(*origin.shape[:-1], -1)], -1) for origin in self.origins]
        self.cache.expect(self._coming, self.continuous)
        states = run(self.text_model, self.embeds[None, rows], self._coming, self.cache, self, self.arguments(rows))
        return states[0, last][None]

    def _read_chunk(self, chunk: Chunk) -> Tensor:
        rows = self._rows(chunk.rows.start, chunk.rows.stop)
        if self.compressor is None:
            return self._forward(rows)
        length = len(self.embeds)
        guide = min(self.compressor.guide, length - self.chunks[-1].rows.stop)
        chunk = replace(chunk, past=self.cache.lengths, guide=guide)
        positions = self.positions[:, :, rows]
        if chunk.guide:
            rows = torch.cat([rows, self._rows(length - chunk.guide, length)])
            positions = torch.cat([positions, self.compressor.guide_positions(chunk, self.positions)], 2)
        self._chunk = chunk
        state = self._forward(rows, positions, len(chunk) - 1)
        self._chunk = None
        self._evict(chunk)
        return state

    def _evict(self, chunk: Chunk) -> None:
        assert self.compressor is not None
        for number, rows in enumerate(self.compressor.kept(chunk)):
            old = self.cache.layers[number].positions
            assert old is not None
            new = self.compressor.positions(chunk, number, old)
            self.cache.keep(number, rows, None if new is old else new)
            self.origins[number] = _taken(self.origins[number], rows.to(self.embeds.device))

    def attending(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Let the compressor look at a chunk; queries come back on the layer's own time line."""
        if self._chunk is not None and self.compressor is not None:
            self._show(self.compressor, self._chunk, layer, query, key, value)
        return self.cache.follow(layer, query)

    def _show(
        self, compressor: KVCompressor, chunk: Chunk, layer: int, query: Tensor, key: Tensor, value: Tensor
    ) -> None:
        span = slice(chunk.past[layer], chunk.past[layer] + len(chunk))
        looking = slice(len(chunk), None) if chunk.guide else slice(0, len(chunk))
        query, key, value = query[:, :, looking], key[:, :, span], value[:, :, span]
        if compressor.position_free:
            stands = self.cache.layers[layer].positions
            assert stands is not None
            coming = self._coming[..., looking].to(query.device)
            query, key = self.rope.strip(query, coming), self.rope.strip(key, stands[..., span])
        with Counted() as counted:
            compressor.observe(layer, query, key, value)
        self.scoring += counted.total


def _taken(origin: Tensor, rows: Tensor) -> Tensor:
    """Entries of [K] or [G,K] at `rows` [n] or [G,n]."""
    if rows.ndim == 1:
        return origin[..., rows]
    return origin.expand(len(rows), -1).gather(1, rows)


def run(
    text_model: PreTrainedModel,
    embeds: Tensor,
    positions: Tensor,
    cache: KVCache,
    observer: Observer,
    arguments: Mapping[str, Any],
) -> Tensor:
    """Call a text model on announced tokens `embeds` [1,n,D] at `positions` [A,1,n]: their states [1,n,D]."""
    return text_model(
        inputs_embeds=embeds,
        position_ids=positions if len(positions) > 1 else positions[0],
        past_key_values=cache,
        use_cache=True,
        observer=observer,
        **arguments,
    ).last_hidden_state
