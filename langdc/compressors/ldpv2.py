"""LDPv2: project, pool, and let neighbours talk; a learned compressor with a fixed number of tokens per frame.

Letters: T frames, H W patch grid, C encoder width, D backbone width, N tokens.
Source: MobileVLM V2 (arXiv 2402.03766), section 3.3; an alternative base in LangDC's table 4.
"""

import torch
from torch import Tensor, nn

from langdc.compressors.base import compressors, segment_of_frame
from langdc.interfaces import LearnedCompressor
from langdc.metering import matmul_flops
from langdc.projectors import average_pool, build_projector
from langdc.types import VideoFeatures, VideoTokens


class _Neighbours(nn.Module):
    """A depth-wise 3x3 convolution beside its input: tokens learn where they stand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, grid: Tensor) -> Tensor:
        """[T,H,W,D] to the same."""
        return grid + self.convolution(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@compressors.register("ldpv2")
class LDPv2(LearnedCompressor):
    """Project every patch with an MLP, average each frame to `sides[i]` x `sides[i]`, add what the neighbours say.

    `streams`: encoder widths by name and `width`: the backbone's, both filled in from the backbone; `sides`: one per
    stream. Brings its own projectors, so the backbone's may be "identity". Trained by stages 1 and 3 (`compressor.*`).
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

    def batch(self, videos: list[VideoFeatures]) -> list[VideoTokens]:
        """One call of each module for all videos, so that every rank of a sharded run makes the same calls."""
        lengths = [len(next(iter(video.encoder.values())).values) for video in videos]
        streams = []
        for name, side in self.sides.items():
            values = torch.cat([video.encoder[name].values for video in videos])
            if side > values.shape[1]:
                raise ValueError(f"ldpv2 side {side} is larger than the grid of {values.shape[1]} patches a side.")
            pooled = average_pool(self.projectors[name](values), side)
            streams.append(self.neighbours[name](pooled).flatten(1, 2).split(lengths))
        return [self._tokens(parts) for parts in zip(*streams, strict=True)]

    def _tokens(self, parts: tuple[Tensor, ...]) -> VideoTokens:
        segments = [
            segment_of_frame(len(p), self.frames_per_segment, p.device).repeat_interleave(p.shape[1]) for p in parts
        ]
        return VideoTokens(torch.cat([part.flatten(0, 1) for part in parts]), torch.cat(segments))

    def forward(self, video: VideoFeatures) -> VideoTokens:
        return self.batch([video])[0]

    def flops(self, video: VideoFeatures) -> float:
        total = 0.0
        for name, side in self.sides.items():
            first, _, second = self.projectors[name]  # pyright: ignore[reportGeneralTypeIssues]
            rows, frames = video.encoder[name].tokens, len(video.encoder[name].values)
            total += matmul_flops(rows, first.in_features, first.out_features)
            total += matmul_flops(rows, second.in_features, second.out_features)
            total += 2.0 * 9 * frames * side**2 * second.out_features
        return total
