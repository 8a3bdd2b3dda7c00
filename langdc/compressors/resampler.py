"""A resampler: learned queries look at each segment and answer with a fixed number of tokens.

Letters: B segments, T frames, P patches of a frame, C encoder width, D backbone width, K queries, N tokens.
Source: the perceiver resampler of Flamingo (arXiv 2204.14198), section 3.1.1, as video models use it per segment.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from langdc.compressors.base import compressors
from langdc.interfaces import LearnedCompressor
from langdc.metering import matmul_flops
from langdc.types import VideoFeatures, VideoTokens


class _Block(nn.Module):
    """Queries look at patches and at each other, then think."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query_norm, self.patch_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, queries: Tensor, patches: Tensor, hidden: Tensor) -> Tensor:
        """[B,K,D] and [B,n,D]; `hidden` [B,n] is true at padding."""
        asking, seen = self.query_norm(queries), self.patch_norm(patches)
        keys = torch.cat([seen, asking], 1)
        mask = torch.cat([hidden, hidden.new_zeros(asking.shape[:2])], 1)
        queries = queries + self.attention(asking, keys, keys, key_padding_mask=mask, need_weights=False)[0]
        return queries + self.mlp(queries)


@compressors.register("resampler")
class Resampler(LearnedCompressor):
    """Let `queries` learned vectors look at all patches of a segment, in `depth` rounds; they become its tokens.

    `streams`: encoder widths by name and `width`: the backbone's, both filled in from the backbone. Patches are told
    apart by stream, frame of the segment, row and column. Trained by stages 1 and 3 (`compressor.*`).
    """

    needs = frozenset({"encoder"})
    paper = "Flamingo, arXiv 2204.14198"

    def __init__(
        self,
        width: int,
        streams: dict[str, int],
        queries: int,
        depth: int = 2,
        heads: int = 4,
        most_side: int = 32,
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__()
        if queries < 1 or depth < 1 or width % heads:
            raise ValueError(
                f"queries={queries} and depth={depth} must be at least 1, and heads={heads} must divide width {width}."
            )
        self.frames_per_segment, self.most_side = frames_per_segment, most_side
        self.projectors = nn.ModuleDict({name: nn.Linear(wide, width) for name, wide in streams.items()})
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.frame = nn.Parameter(torch.randn(frames_per_segment, width) * 0.02)
        self.row = nn.Parameter(torch.randn(most_side, width) * 0.02)
        self.column = nn.Parameter(torch.randn(most_side, width) * 0.02)
        self.stream = nn.Parameter(torch.randn(len(streams), width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def batch(self, videos: list[VideoFeatures]) -> list[VideoTokens]:
        """All segments of all videos in one batch."""
        segments, counts = self._patches(videos)
        patches = pad_sequence(segments, batch_first=True)
        lengths = torch.tensor([len(part) for part in segments], device=patches.device)
        hidden = torch.arange(patches.shape[1], device=patches.device) >= lengths[:, None]
        found = self.queries.expand(len(segments), -1, -1)
        for block in self.blocks:
            found = block(found, patches, hidden)
        return [self._tokens(part) for part in self.out(found).split(counts)]

    def _patches(self, videos: list[VideoFeatures]) -> tuple[list[Tensor], list[int]]:
        """The patches of every segment [n,D], all streams in turn, and how many segments each video has."""
        streams = []
        for number, (name, projector) in enumerate(self.projectors.items()):
            grids = [video.encoder[name].values for video in videos]
            if max(grids[0].shape[1:3]) > self.most_side:
                raise ValueError(f"A grid of {tuple(grids[0].shape[1:3])} patches; most_side is {self.most_side}.")
            place = self.row[: grids[0].shape[1], None] + self.column[: grids[0].shape[2]] + self.stream[number]
            values = (projector(torch.cat(grids)) + place).flatten(1, 2)
            videos_of = values.split([len(grid) for grid in grids])
            parts = [part for video in videos_of for part in video.split(self.frames_per_segment)]
            streams.append([(part + self.frame[: len(part), None]).flatten(0, 1) for part in parts])
        counts = [-(-len(next(iter(v.encoder.values())).values) // self.frames_per_segment) for v in videos]
        return [torch.cat(parts) for parts in zip(*streams, strict=True)], counts

    def _tokens(self, found: Tensor) -> VideoTokens:
        number = torch.arange(len(found), device=found.device)
        return VideoTokens(found.flatten(0, 1), number.repeat_interleave(found.shape[1]))

    def forward(self, video: VideoFeatures) -> VideoTokens:
        return self.batch([video])[0]

    def flops(self, video: VideoFeatures) -> float:
        asked, width = self.queries.shape
        patches = {name: video.encoder[name].tokens for name in self.projectors}
        segments = -(-len(next(iter(video.encoder.values())).values) // self.frames_per_segment)
        total = sum(
            matmul_flops(patches[name], p.in_features, width)  # pyright: ignore[reportArgumentType]
            for name, p in self.projectors.items()
        )
        keys = sum(patches.values()) + segments * asked
        rows = segments * asked
        attention = matmul_flops(2 * rows + 2 * keys, width, width) + 2 * matmul_flops(asked, width, keys)
        mlp = 2 * matmul_flops(rows, width, 4 * width)
        return total + len(self.blocks) * (attention + mlp) + matmul_flops(rows, width, width)
