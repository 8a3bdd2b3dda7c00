"""LDPv2, a learned compressor: project, pool, let neighbours talk.

Letters: T frames, H W patch grid, C encoder width, D backbone width, n tokens of a frame, N tokens.
Source: MobileVLM V2 (arXiv 2402.03766), section 3.3; a base in LangDC's table 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langdc.compressors.base import compressors, encoder_values, segment_length, stream_tokens
from langdc.interfaces import TokenCompressor
from langdc.projectors import average_pool, build_projector, project_ragged
from langdc.types import Compressed, Context, VideoFeatures


class _Neighbours(nn.Module):
    """A depth-wise 3x3 convolution with a residual connection: a positional encoding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, grid: Tensor) -> Tensor:
        """[T,H,W,D] to the same."""
        return grid + self.convolution(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@compressors.register("ldpv2")
class LDPv2(TokenCompressor):
    """Project patches with an MLP, average each frame to `sides[i]` x `sides[i]`, add a depth-wise convolution.

    `width` and `streams` (encoder widths) are filled in from the backbone, whose projectors may be "identity"; `sides`:
    one per stream.
    """

    needs = frozenset({"encoder"})
    paper = "MobileVLM V2, arXiv 2402.03766"

    def __init__(self, width: int, streams: dict[str, int], sides: list[int], frames_per_segment: int = 4) -> None:
        super().__init__()
        if len(sides) != len(streams) or min(sides, default=0) < 1:
            raise ValueError(f"ldpv2 sides are {sides}; give one positive side per stream: {', '.join(streams)}.")
        self.sides = dict(zip(streams, sides, strict=True))
        self.frames_per_segment = frames_per_segment
        self.projectors = nn.ModuleDict({n: build_projector("mlp2x_gelu", wide, width) for n, wide in streams.items()})
        self.neighbours = nn.ModuleDict({name: _Neighbours(width) for name in streams})

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        if "tokens" not in context.wanted:
            return Compressed([])
        streams = [self._stream(videos, name, side) for name, side in self.sides.items()]
        steps = [segment_length(video, self.frames_per_segment) for video in videos]
        return Compressed([stream_tokens(parts, n) for n, parts in zip(steps, zip(*streams, strict=True), strict=True)])

    def _stream(self, videos: list[VideoFeatures], name: str, side: int) -> list[Tensor]:
        """One stream's tokens of each video [T,n,D], by one call of each module; zeros fill grids up to `side`."""
        projected = project_ragged(self.projectors[name], encoder_values(videos, name))
        pooled = [average_pool(grid, side) for grid in projected]
        sizes = [grid.shape[1:3] for grid in pooled]
        filled = torch.cat([F.pad(g, (0, 0, 0, side - g.shape[2], 0, side - g.shape[1])) for g in pooled])
        parts = self.neighbours[name](filled).split([len(grid) for grid in pooled])
        return [part[:, :rows, :columns].flatten(1, 2) for part, (rows, columns) in zip(parts, sizes, strict=True)]
