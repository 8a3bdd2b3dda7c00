"""The plain controls: all tokens, any tokens, fewer frames, lower resolution, stride, average pooling."""

import pytest
import torch

from tests.compressors.grids import SHAPES, check, compress, grid_of, lists, noise
from tests.reference.uniform import averaged, averaged_in_time, middle_frames, smaller_box, smaller_side
from tests.reference.vectors import evenly


@pytest.mark.parametrize("shape", SHAPES)
def test_identity(shape: tuple[int, int, int]) -> None:
    grid = grid_of(noise(*shape))
    check(compress("identity", grid), grid, list(range(grid.tokens)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("budget", [{"keep": 0.3}, {"keep": 0.77}, {"tokens": 1}, {"tokens": 9}])
def test_random_takes_as_many_of_each_frame(shape: tuple[int, int, int], budget: dict) -> None:
    grid, places = grid_of(noise(*shape)), shape[1] * shape[2]
    found = compress("random", grid, **budget)
    assert found.source is not None
    wanted = min(budget.get("tokens") or max(1, int(budget["keep"] * grid.tokens)), grid.tokens)
    per_frame = torch.bincount(found.source // places, minlength=shape[0]).tolist()
    assert per_frame == evenly(wanted, shape[0], places)
    check(found, grid, sorted(set(found.source.tolist())))


def test_random_is_drawn_from_seed_and_content() -> None:
    grid, other = grid_of(noise(6, 4, 5)), grid_of(noise(6, 4, 5, seed=1))

    def kept(of, seed: int) -> list[int]:
        return compress("random", of, keep=0.3, seed=seed).source.tolist()  # pyright: ignore[reportOptionalMemberAccess]

    assert kept(grid, 0) == kept(grid, 0)
    assert len({tuple(kept(grid, 0)), tuple(kept(grid, 1)), tuple(kept(other, 0))}) == 3


def test_random_leaves_no_place_out() -> None:
    """Of 400 draws of a quarter, each place gets about a hundred; five standard deviations are 43."""
    grid, hits = grid_of(noise(1, 3, 4)), torch.zeros(12)
    for seed in range(400):
        hits[compress("random", grid, keep=0.25, seed=seed).source] += 1
    assert hits.sum() == 1200 and (hits - 100).abs().max() < 43


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_fewer_frames(shape: tuple[int, int, int], share: float) -> None:
    """Whole frames; of less than a frame, places in the middle of equal parts of the middle frame."""
    grid, places = grid_of(noise(*shape)), shape[1] * shape[2]
    wanted = max(1, int(share * grid.tokens))
    frames = middle_frames(shape[0], max(1, wanted // places))
    within = range(places) if wanted >= places else middle_frames(places, wanted)
    check(compress("uniform", grid, tokens=wanted), grid, [t * places + p for t in frames for p in within])


def test_frames_are_spread_over_the_whole_video() -> None:
    grid = grid_of(noise(9, 1, 2))
    check(compress("uniform", grid, tokens=6), grid, [2, 3, 8, 9, 14, 15])
    check(compress("uniform", grid_of(noise(3, 1, 8)), tokens=2), grid_of(noise(3, 1, 8)), [8 + 2, 8 + 6])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_frame", [1, 1.5, 4, 4.9])
def test_lower_resolution(shape: tuple[int, int, int], per_frame: float) -> None:
    frames, height, width = shape
    grid = grid_of(noise(*shape))
    wanted = int(per_frame * frames)
    rows, columns = smaller_side(height, width, wanted / frames)
    small = averaged(lists(grid.values), height, width, rows, columns)
    found = compress("uniform", grid, tokens=wanted, by="resolution")
    values = torch.tensor([token for frame in small for token in frame])
    torch.testing.assert_close(found.values, values, atol=1e-5, rtol=0)
    assert found.source is not None and found.source.tolist() == [
        (t * height + i) * width + j
        for t in range(frames)
        for i in middle_frames(height, rows)
        for j in middle_frames(width, columns)
    ]
    # side features are averaged as the tokens are, and with them the number of the place
    places = averaged([[[s] for s in range(t * height * width, (t + 1) * height * width)] for t in range(frames)],
                      height, width, rows, columns)  # fmt: skip
    assert found.extra[0][:, 0].tolist() == pytest.approx([token[0] for frame in places for token in frame])


def test_lower_resolution_keeps_the_shape_of_a_frame() -> None:
    assert len(compress("uniform", grid_of(noise(2, 6, 12)), tokens=2 * 18, by="resolution")) == 2 * 3 * 6
    assert len(compress("uniform", grid_of(noise(2, 12, 6)), tokens=2 * 17, by="resolution")) == 2 * 5 * 3


def test_less_than_a_token_a_frame_is_the_average_of_fewer_frames() -> None:
    grid = grid_of(noise(7, 2, 4))
    found = compress("uniform", grid, tokens=3, by="resolution")
    watched = middle_frames(7, 3)
    torch.testing.assert_close(found.values, grid.values[watched].mean((1, 2)), atol=1e-5, rtol=0)
    assert found.source is not None and found.source.tolist() == [t * 8 + 1 * 4 + 2 for t in watched]
    assert found.extra[0][:, 0].tolist() == pytest.approx([t * 8 + 3.5 for t in watched])


def test_a_tall_frame_is_not_averaged_to_nothing() -> None:
    found = compress("uniform", grid_of(noise(2, 9, 1)), tokens=2, by="resolution")
    assert found.source is not None and found.source.tolist() == [4, 9 + 4]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wanted", [1, 2, 7, 0.25, 0.5, 0.99])
def test_every_kth_token(shape: tuple[int, int, int], wanted: float) -> None:
    grid = grid_of(noise(*shape))
    count = min(grid.tokens - 1, wanted if isinstance(wanted, int) else int(wanted * grid.tokens))
    found = compress("uniform", grid, tokens=count, by="stride")
    check(found, grid, middle_frames(grid.tokens, count))
    assert len(found) == count


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.25, 0.5, 0.9])
def test_average_pooling(shape: tuple[int, int, int], share: float) -> None:
    """Adaptive average pooling over space, then time, to a box like the video's own that the budget still holds."""
    frames, height, width = shape
    grid = grid_of(noise(*shape))
    wanted = max(1, int(share * grid.tokens))
    steps, rows, columns = smaller_box(frames, height, width, wanted)
    assert wanted - rows * columns < steps * rows * columns <= wanted or steps == frames
    small = averaged_in_time(averaged(lists(grid.values), height, width, rows, columns), steps)
    found = compress("uniform", grid, tokens=wanted, by="pool")
    expected = torch.tensor([token for step in small for token in step])
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=0)
    assert found.source is not None and found.source.tolist() == [
        (t * height + i) * width + j
        for t in middle_frames(frames, steps)
        for i in middle_frames(height, rows)
        for j in middle_frames(width, columns)
    ]
    places = [[[float(t * height * width + p)] for p in range(height * width)] for t in range(frames)]
    places = averaged_in_time(averaged(places, height, width, rows, columns), steps)
    assert found.extra[0][:, 0].tolist() == pytest.approx([token[0] for step in places for token in step])


@pytest.mark.parametrize(("frames", "wanted", "box"), [(16, 64, (4, 4, 4)), (128, 1, (1, 1, 1)), (3, 400, (2, 14, 14))])
def test_the_box_of_average_pooling_is_shaped_like_the_video(frames: int, wanted: int, box: tuple) -> None:
    found = compress("uniform", grid_of(noise(frames, 16, 16)), tokens=wanted, by="pool")
    assert found.source is not None
    axes = [found.source // 256, found.source // 16 % 16, found.source % 16]
    assert tuple(len(axis.unique()) for axis in axes) == box


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.5, "by": "time"}, "by='time'; allowed are 'frames', 'resolution', 'stride', 'pool'"),
        ({}, "neither was given"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress("uniform", grid_of(noise(4, 3, 3)), **settings)
