"""LDPv2 against its formulas, patch by patch."""

import pytest
import torch
import torch.nn.functional as F

from langdc.compressors import build
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens
from tests import tiny
from tests.compressors.grids import alone, lists, noise
from tests.reference.ldpv2 import ldpv2

STREAMS = {"image": 24, "video": 32}


def make(sides: list[int], width: int = 12):
    torch.manual_seed(0)
    return build("ldpv2", width=width, streams=STREAMS, sides=sides, frames_per_segment=4).eval()


def weights(compressor, name: str) -> dict:
    """A stream's weights as nested lists."""
    parts = (compressor.projectors[name], compressor.neighbours[name])
    return {key: value.double().tolist() for part in parts for key, value in part.state_dict().items()}


@torch.no_grad()
def compress(compressor, video: VideoFeatures) -> VideoTokens:
    return alone(compressor, video)


@pytest.mark.parametrize("sides", [[3, 2], [6, 4], [4, 3], [1, 1]])
@pytest.mark.parametrize("frames", [1, 6])
def test_like_the_formulas(sides: list[int], frames: int) -> None:
    """All tokens of the first stream, then of the second; sides that divide the grid, its own and others."""
    compressor, video = make(sides), tiny.features(count=frames)
    found = compress(compressor, video)
    expected, segment = [], []
    for (name, grid), side in zip(video.encoder.items(), sides, strict=True):
        frames_of = ldpv2(lists(grid.values), grid.values.shape[1], side, weights(compressor, name))
        expected += [token for frame in frames_of for token in frame]
        segment += [t // 4 for t in range(frames) for _ in range(side * side)]
    torch.testing.assert_close(found.values.double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)
    assert found.segment.tolist() == segment
    assert found.source is None


@pytest.mark.parametrize("sides", [[3], [3, 2, 2], [3, 0]])
def test_bad_sides(sides: list[int]) -> None:
    with pytest.raises(ValueError, match=r"ldpv2 sides are \[.*; give one positive side per stream: image, video"):
        make(sides)


@torch.no_grad()
def test_a_smaller_grid_keeps_the_rows_and_columns_it_has() -> None:
    """Its convolution sees zeros around it, as if it were alone, though larger grids stand beside it in the batch."""
    compressor = make([5, 3])
    small = {name: FeatureGrid(noise(2, 4, 2, wide)) for name, wide in STREAMS.items()}
    videos = [tiny.features(count=3), VideoFeatures((), small, torch.arange(2))]
    found = compressor(videos).tokens[1]
    expected = []
    for (name, grid), (rows, columns) in zip(small.items(), ((4, 2), (3, 2)), strict=True):
        pooled = F.adaptive_avg_pool2d(compressor.projectors[name](grid.values).movedim(3, 1), (rows, columns))
        expected.append((pooled + compressor.neighbours[name].convolution(pooled)).movedim(1, 3).flatten(0, 2))
    torch.testing.assert_close(found.values, torch.cat(expected), atol=1e-5, rtol=0)
