"""LDPv2 against its formulas, patch by patch."""

import pytest
import torch

from langdc.compressors import build
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens
from tests import tiny
from tests.compressors.grids import lists
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
    return compressor(video)


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


def test_work_is_counted() -> None:
    """By hand: two linear layers for each patch, nine products for each channel of each token."""
    image = 2 * 5 * 36 * (24 * 12 + 12 * 12) + 2 * 9 * 5 * 3 * 3 * 12
    video = 2 * 5 * 16 * (32 * 12 + 12 * 12) + 2 * 9 * 5 * 2 * 2 * 12
    assert make([3, 2]).flops(tiny.features(count=5)) == image + video


@pytest.mark.parametrize("sides", [[3], [3, 2, 2], [3, 0]])
def test_bad_sides(sides: list[int]) -> None:
    with pytest.raises(ValueError, match=r"ldpv2 sides are \[.*; give one positive side per stream: image, video"):
        make(sides)


def test_a_side_larger_than_the_grid() -> None:
    encoded = {name: FeatureGrid(torch.zeros(2, 4, 4, wide)) for name, wide in STREAMS.items()}
    with pytest.raises(ValueError, match="side 5 is larger than the grid of 4"):
        make([5, 2])(VideoFeatures((), encoded, torch.arange(2)))
