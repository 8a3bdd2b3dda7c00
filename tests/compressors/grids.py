"""Small grids for tests of compressors, and how what is kept of them is compared with the slow versions.

Letters: T frames, H W patch grid, P = H*W, C width.
"""

import torch
from torch import Tensor

from langdc.compressors import build
from langdc.interfaces import TokenCompressor
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens
from tests.reference.vectors import Vector, Video, length

PER_SEGMENT = 3
SHAPES = [(1, 3, 4), (2, 1, 5), (5, 3, 5), (8, 4, 4), (11, 2, 7)]
"""T, H, W: one frame, one row, odd numbers, a square, many frames."""


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(frames: int, height: int, width: int, channels: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(frames, height, width, channels, generator=dice(seed))


def scenes(frames: int, height: int, width: int, channels: int = 8, seed: int = 0, cut: int = 4) -> Tensor:
    """A video that jumps every `cut` frames; between, half of the places hardly move and the others do."""
    scene = noise(-(-frames // cut), height, width, channels, seed).repeat_interleave(cut, 0)[:frames]
    moving = torch.rand(height, width, 1, generator=dice(seed + 1)) < 0.5
    return scene + torch.where(moving, 1.0, 0.05) * noise(frames, height, width, channels, seed + 2)


def blocks(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Each token one of eight directions: many ties, and float32 gives every cosine and distance of two exactly."""
    which = torch.randint(0, 8, (frames, height, width), generator=dice(seed))
    return torch.eye(8)[which]


def grid_of(values: Tensor, saliency: bool = False, seed: int = 5) -> FeatureGrid:
    """A grid with side features that tell its places, and the encoder's attention where asked for."""
    shape = values.shape[:3]
    place = torch.arange(shape.numel(), dtype=torch.float32).view(*shape, 1)
    return FeatureGrid(values, torch.rand(shape, generator=dice(seed)) if saliency else None, (place,))


def lists(values: Tensor) -> Video:
    """[T,H,W,C] as frames of places of vectors."""
    return values.double().flatten(1, 2).tolist()


def scores(grid: FeatureGrid) -> list[list[float]]:
    """How salient each place of each frame is: by the encoder's attention if it is there, else by length."""
    if grid.saliency is not None:
        return grid.saliency.double().flatten(1).tolist()
    return [[length(token) for token in frame] for frame in lists(grid.values)]


def alone(compressor: TokenCompressor, video: VideoFeatures) -> VideoTokens:
    """The tokens of one video."""
    return compressor([video]).tokens[0]


def compress(name: str, grid: FeatureGrid, **settings) -> VideoTokens:
    """What a compressor makes of one grid."""
    compressor = build(name, **settings, frames_per_segment=PER_SEGMENT)
    return alone(compressor, VideoFeatures((grid,), {}, torch.arange(len(grid.values)) / 2))


def check(found: VideoTokens, grid: FeatureGrid, source: list[int], values: list[Vector] | None = None) -> None:
    """Exactly these places, with what travels with them; values as they were, or `values` (float32 against float64)."""
    assert found.source is not None
    assert found.source.tolist() == source
    places = grid.values.shape[1:3].numel()
    assert found.segment.tolist() == [s // places // PER_SEGMENT for s in source]
    assert found.extra[0][:, 0].tolist() == source
    if values is None:
        assert torch.equal(found.values, grid.values.flatten(0, 2)[source])
    else:
        torch.testing.assert_close(found.values.double(), torch.tensor(values).double(), atol=1e-5, rtol=0)
