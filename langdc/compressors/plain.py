"""Baselines: all tokens, random ones, evenly spaced ones, averages. Letters: T frames, H W patch grid, N tokens."""

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

By = Literal["frames", "resolution", "stride", "pool"]


@compressors.register("identity")
class Identity(GridCompressor):
    """Keep every token: the uncompressed model."""

    def __init__(self, frames_per_segment: int = 4) -> None:
        super().__init__(keep=1.0, frames_per_segment=frames_per_segment)

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        return self.whole(grid)


@compressors.register("random")
class Random(Selector):
    """Keep tokens at random, the same number of each frame. The draw depends on `seed` and on the video's content."""

    def __init__(
        self, keep: float | None = None, tokens: int | None = None, seed: int = 0, frames_per_segment: int = 4
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment)
        self.seed = seed

    def score(self, grid: FeatureGrid) -> Tensor:
        # a corner of every frame tells videos apart, and is quick to copy and hash
        corner = grid.values[:, 0, 0, :16].detach().float().cpu().contiguous()
        content = hashlib.sha256(corner.numpy().tobytes()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(content[:6], "big") ^ self.seed)
        return torch.rand(grid.values.shape[0], grid.values.shape[1:3].numel(), generator=draw).to(grid.values.device)


@compressors.register("uniform")
class Uniform(GridCompressor):
    """Fewer frames, a lower resolution, every k-th token, or averages over space and time; never above the budget.

    `by="frames"`: evenly spaced whole frames; where the budget is less than one, evenly spaced tokens of the middle
    frame. `by="resolution"`: each frame averaged to a smaller grid of about the same shape; where the budget is less
    than one token a frame, evenly spaced frames averaged to one token. `by="stride"`: evenly spaced tokens, counted
    row by row and frame by frame; exactly the budget. `by="pool"`: the video averaged to a smaller T x H x W of about
    the same shape (adaptive average pooling), with as many steps as the budget then allows.
    """

    def __init__(
        self, keep: float | None = None, tokens: int | None = None, by: By = "frames", frames_per_segment: int = 4
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment)
        check_choice("uniform by", by, By)
        self.by = by

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        if budget.covers(grid.tokens):
            return self.whole(grid)
        wanted = budget.of(grid.tokens)
        if self.by == "stride":
            return self.taken(grid, middles(grid.tokens, wanted, grid.values.device))
        return self._fewer_frames(grid, wanted) if self.by == "frames" else self._averaged(grid, wanted)

    def _fewer_frames(self, grid: FeatureGrid, wanted: int) -> VideoTokens:
        frames, places, device = len(grid.values), grid.values.shape[1:3].numel(), grid.values.device
        of_time = middles(frames, max(1, wanted // places), device)
        of_frame = middles(places, min(wanted, places), device)
        return self.taken(grid, (of_time[:, None] * places + of_frame).flatten())

    def _averaged(self, grid: FeatureGrid, wanted: int) -> VideoTokens:
        frames, height, width, _ = grid.values.shape
        steps = min(wanted, frames)
        if self.by == "pool":
            steps = min(wanted, max(1, int(frames * (wanted / grid.tokens) ** (1 / 3))))
        of_frame = wanted // steps
        rows = max(1, min(height, of_frame, math.isqrt(wanted * height // (steps * width))))
        columns = min(width, of_frame // rows)
        if self.by == "pool":
            steps = min(frames, wanted // (rows * columns))
        time, row, column = (
            middles(*sides, grid.values.device) for sides in ((frames, steps), (height, rows), (width, columns))
        )
        cells = (time[:, None, None] * height + row[:, None]) * width + column  # the middle of each
        read = slice(None) if self.by == "pool" or steps == frames else time
        values, *sides = (_smaller(side[read], steps, rows, columns) for side in (grid.values, *grid.extra))
        found = self.with_values(self.taken(grid, cells.flatten()), values)
        return replace(found, extra=tuple(sides), frame=rows * columns)


def _smaller(values: Tensor, steps: int, rows: int, columns: int) -> Tensor:
    """A grid [T,H,W,C] averaged to steps x rows x columns, as a list [N,C]."""
    small = F.adaptive_avg_pool2d(values.movedim(3, 1), (rows, columns)).movedim(1, 3)
    if steps < len(small):
        small = F.adaptive_avg_pool2d(small.flatten(1)[None], (steps, small[0].numel())).view(steps, -1, small.shape[3])
    return small.reshape(-1, small.shape[-1])
