"""Adaptive average pooling by its definition, cell by cell."""

import math

import torch
from torch import Tensor


def slow_pool(grid: Tensor, side: int) -> Tensor:
    """[T,H,W,C] to [T,side,side,C]: cell i averages the patches from floor(i*H/side) to ceil((i+1)*H/side)."""
    frames, height, width, channels = grid.shape
    pooled = torch.empty(frames, side, side, channels)
    for frame in range(frames):
        for i in range(side):
            for j in range(side):
                rows = range(math.floor(i * height / side), math.ceil((i + 1) * height / side))
                columns = range(math.floor(j * width / side), math.ceil((j + 1) * width / side))
                cell = [grid[frame, a, b] for a in rows for b in columns]
                pooled[frame, i, j] = torch.stack(cell).mean(0)
    return pooled
