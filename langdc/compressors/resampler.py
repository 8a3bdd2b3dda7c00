"""A resampler: learned queries attend to the patches of a segment and become its tokens.

Letters: B segments, T frames, P patches per frame, n per segment, C encoder and D backbone width, K queries, N tokens.
Source: the perceiver resampler of Flamingo (arXiv 2204.14198), section 3.1.1, as video models use it per segment.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from langdc.compressors.base import compressors, encoder_values, segment_length, stream_tokens
from langdc.interfaces import TokenCompressor
from langdc.projectors import Vectors, project_ragged
from langdc.types import Compressed, Context, VideoFeatures, VideoTokens


class _Attention(nn.Module):
    """Attention whose linear layers are called: ZeRO-3 gathers no weights inside `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """[B,K,D] and [B,n,D] to [B,K,D]; `visible` [B,K,n] says which keys a query attends to."""
        asked, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(queries), *self.key_value(keys).chunk(2, -1))
        )
        mixed = F.scaled_dot_product_attention(asked, key, value, visible[:, None])
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Queries attend to patches and to each other; an MLP follows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query_norm, self.patch_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        inner, outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), inner, nn.GELU(), outer)

    def forward(self, queries: Tensor, patches: Tensor, visible: Tensor) -> Tensor:
        """[B,K,D] and [B,n,D] to [B,K,D]; `visible` [B,K,n+K]: which patches and queries a query attends to."""
        asking = self.query_norm(queries)
        keys = torch.cat([self.patch_norm(patches), asking], 1)
        queries = queries + self.attention(asking, keys, visible)
        return queries + self.mlp(queries)


@compressors.register("resampler")
class Resampler(TokenCompressor):
    """`queries` learned vectors attend to all patches of a segment in `depth` blocks, and become its tokens.

    A backbone fills in `width` and `streams`. Learned vectors tell stream, frame, row and column, `max_side` each.
    """

    causal: ClassVar[bool] = False
    """Whether a query attends only to itself and the queries before it, so that the first ones do not depend on how
    many follow."""
    needs = frozenset({"encoder"})
    paper = "Flamingo, arXiv 2204.14198"

    def __init__(
        self,
        width: int,
        streams: dict[str, int],
        queries: int,
        depth: int = 2,
        heads: int = 4,
        max_side: int = 32,
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__()
        if min(queries, depth, heads) < 1 or width % heads:
            raise ValueError(
                f"queries={queries} and depth={depth} must be at least 1, and heads={heads} must divide width {width}."
            )
        self.frames_per_segment, self.max_side = frames_per_segment, max_side
        self.projectors = nn.ModuleDict({name: nn.Linear(wide, width) for name, wide in streams.items()})
        self.queries = Vectors(queries, width)
        self.frame = Vectors(frames_per_segment, width)
        self.row = Vectors(max_side, width)
        self.column = Vectors(max_side, width)
        self.stream = Vectors(len(streams), width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        if "tokens" not in context.wanted:
            return Compressed([])
        return Compressed(self.resampled(videos, self.queries()))

    def resampled(self, videos: list[VideoFeatures], queries: Tensor) -> list[VideoTokens]:
        """The tokens that `queries` [K,D] become for each segment; all segments of all videos in one batch."""
        streams = [self._segments(videos, number, name) for number, name in enumerate(self.projectors)]
        segments = [torch.cat(parts) for parts in zip(*streams, strict=True)]
        patches = pad_sequence(segments, batch_first=True)
        lengths = torch.tensor([len(part) for part in segments], device=patches.device)
        real = torch.arange(patches.shape[1], device=patches.device) < lengths[:, None]
        others = torch.ones(len(queries), len(queries), dtype=torch.bool, device=patches.device)
        if self.causal:
            others = others.tril()
        each = (len(segments), len(queries), -1)
        visible = torch.cat([real[:, None].expand(each), others.expand(each)], 2)
        states = queries.expand(each)
        for block in self.blocks:
            states = block(states, patches, visible)
        frames = map(len, encoder_values(videos, next(iter(self.projectors))))
        steps = [segment_length(video, self.frames_per_segment) for video in videos]
        counts = [-(-count // each) for count, each in zip(frames, steps, strict=True)]
        return [stream_tokens([part], 1) for part in self.out(states).split(counts)]

    def _segments(self, videos: list[VideoFeatures], number: int, name: str) -> list[Tensor]:
        """The patches of one stream of every segment [n,D], with the vectors of their positions."""
        grids = encoder_values(videos, name)
        largest = max((tuple(grid.shape[1:3]) for grid in grids), key=max)
        if max(largest) > self.max_side:
            raise ValueError(f"A grid of {largest} patches; max_side is {self.max_side}.")
        row, column, frame, stream = self.row(), self.column(), self.frame(), self.stream()[number]
        segments = []
        for video, values in zip(videos, project_ragged(self.projectors[name], grids), strict=True):
            placed = values + (row[: values.shape[1], None] + column[: values.shape[2]] + stream)
            parts = placed.flatten(1, 2).split(segment_length(video, self.frames_per_segment))
            # crops of an image are all of one frame
            segments += [(part + frame[: 1 if video.is_image else len(part), None]).flatten(0, 1) for part in parts]
        return segments
