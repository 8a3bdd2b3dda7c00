"""MA-LMM against its formulas, merge by merge."""

import pytest
import torch

from langdc.types import VideoTokens
from tests.compressors.grids import PER_SEGMENT, SHAPES, compress, grid_of, lists, noise, scenes, scores
from tests.reference.ma_lmm import ma_lmm
from tests.reference.vectors import Vector, best, mean


def check_merged(found: VideoTokens, places: int, source: list[int], values: list[Vector]) -> None:
    """Values in order of the frames that slots begin with; tokens that were merged say no places."""
    assert found.source is None
    torch.testing.assert_close(found.values.double(), torch.tensor(values).double(), atol=1e-5, rtol=0)
    assert found.segment.tolist() == [s // places // PER_SEGMENT for s in source]


@pytest.mark.parametrize("per", ["frame", "patch"])
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_like_the_formulas(per: str, soft: bool, shape: tuple[int, int, int]) -> None:
    places = shape[1] * shape[2]
    for seed, make in enumerate((noise, scenes)):
        grid = grid_of(make(*shape, seed=seed))
        for count in {1, (shape[0] + 1) // 2, shape[0] - 1 or 1, shape[0]}:
            source, values = ma_lmm(lists(grid.values), count, per == "frame", soft)
            found = compress("ma_lmm", grid, tokens=count * places, per=per, soft=soft)
            check_merged(found, places, source, values)


def one_hot(*order: int) -> torch.Tensor:
    """One place in time: tokens along the axes."""
    return torch.eye(8)[list(order)][:, None, None]


def test_of_equal_pairs_the_earlier_is_merged_by_hand() -> None:
    """Along the axes a a b b c every like pair is as like: of five slots, the first two become one, then the next."""
    values = one_hot(0, 0, 1, 1, 2)
    assert torch.equal(compress("ma_lmm", grid_of(values), tokens=4).values, one_hot(0, 1, 1, 2)[:, 0, 0])
    assert torch.equal(compress("ma_lmm", grid_of(values), tokens=3).values, one_hot(0, 1, 2)[:, 0, 0])


def test_pairs_weigh_what_they_stand_for_by_hand() -> None:
    """a a a b to one: three quarters a when soft, b when the later replaces both."""
    values = one_hot(0, 0, 0, 1)
    soft = compress("ma_lmm", grid_of(values), tokens=1).values[0]
    torch.testing.assert_close(soft, 0.75 * torch.eye(8)[0] + 0.25 * torch.eye(8)[1])
    assert torch.equal(compress("ma_lmm", grid_of(values), tokens=1, soft=False).values[0], torch.eye(8)[1])


@pytest.mark.parametrize("per", ["frame", "patch"])
@pytest.mark.parametrize("saliency", [False, True])
def test_less_than_a_frame_is_the_places_that_matter_most(per: str, saliency: bool) -> None:
    """All frames merged into one; of its places, those that the encoder looks at most, over all frames."""
    grid = grid_of(scenes(6, 3, 5), saliency)
    _, values = ma_lmm(lists(grid.values), 1, per == "frame", True)
    score = dict(enumerate(mean(scores(grid))))
    for tokens in (1, 7, 14):
        expected = best(score, tokens)
        found = compress("ma_lmm", grid, tokens=tokens, per=per)
        check_merged(found, 15, expected, [values[p] for p in expected])


@pytest.mark.parametrize("per", ["frame", "patch"])
@pytest.mark.parametrize(("frames", "keep", "count"), [(11, 0.5, 6), (5, 0.5, 2), (8, 0.4, 3), (9, 0.01, 1)])
def test_the_release_rounds_to_the_nearest_number_of_frames(per: str, frames: int, keep: float, count: int) -> None:
    """Halves to the even number, as Python does; at least one whole frame."""
    grid = grid_of(scenes(frames, 2, 3))
    source, values = ma_lmm(lists(grid.values), count, per == "frame", True)
    check_merged(compress("ma_lmm", grid, keep=keep, per=per, variant="released"), 6, source, values)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="per='token'; allowed are 'frame', 'patch'"):
        compress("ma_lmm", grid_of(noise(2, 2, 2)), keep=0.5, per="token")
