"""The resampler against its formulas, query by query."""

import pytest
import torch

from langdc.compressors import build
from langdc.types import FeatureGrid, VideoFeatures
from tests.compressors.grids import alone, noise
from tests.reference.resampler import resampler

STREAMS = {"image": 6, "video": 10}
WIDTH, PER_SEGMENT = 8, 3


def make(**settings):
    """One whose places and queries matter: their usual initial values are too small to be seen."""
    torch.manual_seed(0)
    made = build(
        "resampler", **{"width": WIDTH, "streams": STREAMS, "queries": 3, **settings}, frames_per_segment=PER_SEGMENT
    )
    for name in ("queries", "frame", "row", "column", "stream"):
        getattr(made, name).weight.data *= 50
    return made.eval()


def features(frames: int, seed: int = 0) -> VideoFeatures:
    image, video = noise(frames, 3, 4, 6, seed), noise(frames, 2, 2, 10, seed + 1)
    return VideoFeatures((), {"image": FeatureGrid(image), "video": FeatureGrid(video)}, torch.arange(frames))


@pytest.mark.parametrize(("depth", "heads", "queries"), [(1, 1, 1), (2, 4, 3), (3, 2, 5)])
@pytest.mark.parametrize("frames", [1, 3, 5])
@torch.no_grad()
def test_like_the_formulas(depth: int, heads: int, queries: int, frames: int) -> None:
    """Segment by segment; a last one may be shorter."""
    compressor, video = make(depth=depth, heads=heads, queries=queries), features(frames)
    weights = {name: value.double().tolist() for name, value in compressor.state_dict().items()}
    expected, segment = [], []
    for start in range(0, frames, PER_SEGMENT):
        part = {
            name: grid.values[start : start + PER_SEGMENT].double().tolist() for name, grid in video.encoder.items()
        }
        expected += resampler(part, weights, depth, heads)
        segment += [start // PER_SEGMENT] * queries
    found = alone(compressor, video)
    torch.testing.assert_close(found.values.double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)
    assert found.segment.tolist() == segment
    assert found.source is None


@torch.no_grad()
def test_what_is_padded_is_not_seen() -> None:
    """Short segments beside long ones in a batch."""
    compressor, videos = make(), [features(1), features(7, seed=2), features(4, seed=4)]
    for together, video in zip(compressor(videos).tokens, videos, strict=True):
        torch.testing.assert_close(together.values, alone(compressor, video).values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 0}, "queries=0 and depth=2 must be at least 1"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"heads": 3}, "heads=3 must divide width 8"),
        ({"heads": 0}, "heads=0 must divide width 8"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_grid_larger_than_it_has_places_for() -> None:
    with pytest.raises(ValueError, match=r"A grid of \(3, 4\) patches; max_side is 3"):
        make(max_side=3)([features(2)])
