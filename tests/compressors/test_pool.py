"""Pooling averages the right patches into the right order, and says which segment each token is of."""

import pytest
import torch

from langdc.compressors import build
from tests import tiny
from tests.reference.pooling import slow_pool


def test_all_image_tokens_then_all_video_tokens() -> None:
    video = tiny.features(count=8)
    found = build("pool", sides=[4, 1])(video)
    image, motion = (slow_pool(grid.values, side) for grid, side in zip(video.projected, (4, 1), strict=True))
    assert found.values.shape == (8 * 16 + 8, tiny.BACKBONE_WIDTH)
    torch.testing.assert_close(found.values, torch.cat([image.flatten(0, 2), motion.flatten(0, 2)]), atol=1e-6, rtol=0)
    assert found.segment.tolist() == [0] * 64 + [1] * 64 + [0] * 4 + [1] * 4
    assert found.per_segment(2) == [68, 68]


def test_a_side_of_the_grid_itself_changes_nothing() -> None:
    video = tiny.features(count=4)
    found = build("pool", sides=[6, 4])(video)
    assert torch.equal(found.values, torch.cat([grid.values.flatten(0, 2) for grid in video.projected]))


@pytest.mark.parametrize(("sides", "stream", "side"), [([3, 0], 0, 3), ([0, 2], 1, 2)])
def test_a_side_of_0_leaves_a_stream_out(sides: list[int], stream: int, side: int) -> None:
    video = tiny.features(count=4)
    found = build("pool", sides=sides)(video)
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
        ([7, 2], "side 7 is larger"),
    ],
)
def test_bad_sides(sides: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("pool", sides=sides)(tiny.features())
