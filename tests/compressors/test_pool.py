"""Pooling averages the right patches into the right order, and says which segment each token is of."""

import pytest
import torch

from langdc.compressors import build
from langdc.types import FeatureGrid, VideoFeatures
from tests import tiny
from tests.compressors.grids import alone, grid_of, noise
from tests.reference.pooling import slow_pool


def test_all_image_tokens_then_all_video_tokens() -> None:
    video = tiny.features(count=8)
    found = alone(build("pool", sides=[4, 1]), video)
    image, motion = (slow_pool(grid.values, side) for grid, side in zip(video.projected, (4, 1), strict=True))
    assert found.values.shape == (8 * 16 + 8, tiny.BACKBONE_WIDTH)
    torch.testing.assert_close(found.values, torch.cat([image.flatten(0, 2), motion.flatten(0, 2)]), atol=1e-6, rtol=0)
    assert found.segment.tolist() == [0] * 64 + [1] * 64 + [0] * 4 + [1] * 4
    assert found.per_segment(2) == [68, 68]


def test_a_side_of_the_grid_itself_changes_nothing() -> None:
    video = tiny.features(count=4)
    found = alone(build("pool", sides=[6, 4]), video)
    assert torch.equal(found.values, torch.cat([grid.values.flatten(0, 2) for grid in video.projected]))


@pytest.mark.parametrize(("sides", "stream", "side"), [([3, 0], 0, 3), ([0, 2], 1, 2)])
def test_a_side_of_0_leaves_a_stream_out(sides: list[int], stream: int, side: int) -> None:
    video = tiny.features(count=4)
    found = alone(build("pool", sides=sides), video)
    expected = slow_pool(video.projected[stream].values, side).flatten(0, 2)
    torch.testing.assert_close(found.values, expected, atol=1e-6, rtol=0)
    assert len(found.segment) == len(expected)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ([], r"sides are \[\]"),
        ([3, -1], r"sides are \[3, -1\]"),
        ([0, 0], r"sides are \[0, 0\]"),
        ([3], "1 streams, the backbone has 2"),
    ],
)
def test_bad_sides(sides: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("pool", sides=sides)([tiny.features()])


def test_a_smaller_grid_keeps_the_rows_and_columns_it_has() -> None:
    """A grid of 2 x 5 with side 3 gives 2 x 3 tokens; one of 1 x 2 stays as it is."""
    wide, small = noise(2, 2, 5), noise(2, 1, 2)
    found = alone(build("pool", sides=[3]), VideoFeatures((FeatureGrid(wide),), {}, torch.arange(2)))
    columns = torch.stack([wide[:, :, a:b].mean(2) for a, b in ((0, 2), (1, 4), (3, 5))], 2)
    torch.testing.assert_close(found.values, columns.flatten(0, 2), atol=1e-6, rtol=0)
    found = alone(build("pool", sides=[3]), VideoFeatures((FeatureGrid(small),), {}, torch.arange(2)))
    assert torch.equal(found.values, small.flatten(0, 2))


def test_side_features_are_averaged_as_the_tokens_are() -> None:
    grid = grid_of(noise(2, 4, 4))
    found = alone(build("pool", sides=[2]), VideoFeatures((grid,), {}, torch.arange(2)))
    assert found.source is None
    torch.testing.assert_close(found.extra[0], slow_pool(grid.extra[0], 2).flatten(0, 2), atol=1e-6, rtol=0)
