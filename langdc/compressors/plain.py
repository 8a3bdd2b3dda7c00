"""The plain controls: everything, any tokens, every k-th frame, lower resolution. A method has to beat these.

Letters: T frames, H W patch grid, P = H*W, C width, N tokens kept.
"""

import hashlib
import math
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from langdc.compressors.base import Budget, GridCompressor, Selector, compressors, middles
from langdc.registry import check_choice
from langdc.types import FeatureGrid, VideoTokens

By = Literal["frames", "resolution"]


@compressors.register("identity")
class Identity(GridCompressor):
    """Keep every token: the uncompressed model."""

    def __init__(self, frames_per_segment: int = 4) -> None:
        super().__init__(keep=1.0, frames_per_segment=frames_per_segment)

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        return self.taken(grid, torch.arange(grid.tokens, device=grid.values.device))


@compressors.register("random")
class Random(Selector):
    """Keep tokens at random, the same number of each frame. The draw depends on `seed` and on the video's content."""

    def __init__(
        self, keep: float | None = None, tokens: int | None = None, seed: int = 0, frames_per_segment: int = 4
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment)
        self.seed = seed

    def score(self, grid: FeatureGrid) -> Tensor:
        # a corner of every frame tells videos apart, and costs nothing to fetch and hash
        corner = grid.values[:, 0, 0, :16].detach().float().cpu().contiguous()
        content = hashlib.sha256(corner.numpy().tobytes()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(content[:6], "big") ^ self.seed)
        return torch.rand(grid.values.shape[0], grid.values.shape[1:3].numel(), generator=draw).to(grid.values.device)


@compressors.register("uniform")
class Uniform(GridCompressor):
    """Watch fewer frames, or watch at a lower resolution.

    `by="frames"`: evenly spaced whole frames; where the budget is less than one, evenly spaced tokens of the middle
    frame. `by="resolution"`: each frame averaged down to a smaller grid of about the same shape; where the budget is
    less than one token a frame, evenly spaced frames averaged to one token. Both keep at most the budget.
    """

    def __init__(
        self, keep: float | None = None, tokens: int | None = None, by: By = "frames", frames_per_segment: int = 4
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment)
        check_choice("uniform by", by, By)
        self.by = by

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        if budget.covers(grid.tokens):
            return self.taken(grid, torch.arange(grid.tokens, device=grid.values.device))
        wanted = budget.of(grid.tokens)
        return self._fewer_frames(grid, wanted) if self.by == "frames" else self._lower_resolution(grid, wanted)

    def _fewer_frames(self, grid: FeatureGrid, wanted: int) -> VideoTokens:
        frames, places, device = len(grid.values), grid.values.shape[1:3].numel(), grid.values.device
        of_time = middles(frames, max(1, wanted // places), device)
        of_frame = middles(places, min(wanted, places), device)
        return self.taken(grid, (of_time[:, None] * places + of_frame).flatten())

    def _lower_resolution(self, grid: FeatureGrid, wanted: int) -> VideoTokens:
        frames, height, width, _ = grid.values.shape
        watched = middles(frames, min(wanted, frames), grid.values.device)
        rows = max(1, min(height, math.isqrt(wanted * height // (len(watched) * width))))
        columns = min(width, wanted // (len(watched) * rows))
        kept = self.taken(grid, _cells(watched, height, width, rows, columns))
        sides = tuple(_smaller(side[watched], rows, columns) for side in grid.extra)
        return replace(self.with_values(kept, _smaller(grid.values[watched], rows, columns)), extra=sides)


def _smaller(values: Tensor, rows: int, columns: int) -> Tensor:
    """A grid [T,H,W,C] averaged to rows x columns, as a list [N,C]."""
    return F.adaptive_avg_pool2d(values.movedim(3, 1), (rows, columns)).movedim(1, 3).flatten(0, 2)


def _cells(frame: Tensor, height: int, width: int, rows: int, columns: int) -> Tensor:
    """The flat place in the middle of each cell of a smaller grid of the given frames: [N]."""
    row, column = middles(height, rows, frame.device), middles(width, columns, frame.device)
    return ((frame[:, None, None] * height + row[:, None]) * width + column).flatten()
