"""Average pooling over space, as in VideoGPT+. Letters: T frames, H W patch grid, D backbone width, N tokens."""

from dataclasses import replace

from torch import Tensor

from langdc.compressors.base import compressors, segment_length, stream_tokens
from langdc.interfaces import TokenCompressor
from langdc.projectors import average_pool
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens


@compressors.register("pool")
class Pool(TokenCompressor):
    """Average every frame's grid to `sides[i]` x `sides[i]` tokens: all image tokens, then all video tokens.

    VideoGPT+ pools 24x24 and 16x16 patches to sides 12 and 8 ("2x2"), LangDC's base to 6 and 4 ("4x4"). A side of 0
    leaves a stream out, as where projectors are trained one by one. Where there is one stream, side features are
    averaged as well.
    """

    paper = "VideoGPT+, arXiv 2406.09418"

    def __init__(self, sides: list[int], frames_per_segment: int = 4) -> None:
        super().__init__()
        if not sides or min(sides) < 0 or max(sides) < 1:
            raise ValueError(f"Pool sides are {sides}; give one positive side per stream, such as [12, 8].")
        self.sides, self.frames_per_segment = sides, frames_per_segment

    def grids(self, video: VideoFeatures) -> list[Tensor]:
        """The pooled grid of each stream that is not left out: [T,side,side,D]."""
        if len(video.projected) != len(self.sides):
            raise ValueError(f"Pool has sides for {len(self.sides)} streams, the backbone has {len(video.projected)}.")
        return [average_pool(grid.values, side) for grid, side in zip(video.projected, self.sides, strict=True) if side]

    def pooled(self, video: VideoFeatures) -> VideoFeatures:
        """A video of the pooled grids, for a method that chooses among their tokens."""
        sides = video.projected[0].extra if len(video.projected) == 1 else ()
        extra = tuple(average_pool(side, self.sides[0]) for side in sides)
        return replace(video, projected=tuple(FeatureGrid(grid, extra=extra) for grid in self.grids(video)))

    def one(self, video: VideoFeatures) -> VideoTokens:
        steps, grids = segment_length(video, self.frames_per_segment), self.pooled(video).projected
        tokens = stream_tokens([grid.values.flatten(1, 2) for grid in grids], steps)
        extra = tuple(side.flatten(0, 2) for side in grids[0].extra)
        return replace(tokens, extra=extra, frame=self.sides[0] ** 2 if len(self.sides) == 1 else None)
