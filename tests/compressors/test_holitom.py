"""HoliTom's part before the language model against its formulas, window by window."""

from dataclasses import asdict

import pytest
import torch

from tests.compressors.grids import check, compress, grid_of, lists, noise, scenes, scores
from tests.reference.holitom import Settings, holitom, released

SHAPES = [(1, 3, 4), (2, 1, 5), (5, 3, 5), (8, 4, 4), (9, 2, 5)]  # the slow version tries all 2**(T-1) ways to cut
OPTIONS = [
    Settings(),
    Settings(still=0.97, own=1.0, context=0.5, neighbours=2),
    Settings(still=-0.3, own=0.0, context=1.0, neighbours=1),
    Settings(still=0.5, max_window=2, context=0.25),
    Settings(max_window=1),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.11, 0.31, 0.83])
@pytest.mark.parametrize("settings", OPTIONS, ids=range(len(OPTIONS)))
def test_like_the_formulas(shape: tuple[int, int, int], keep: float, settings: Settings) -> None:
    for make, saliency in ((noise, True), (scenes, False)):
        grid = grid_of(make(*shape), saliency)
        wanted = max(1, int(keep * grid.tokens))
        expected = holitom(lists(grid.values), scores(grid), wanted, settings)
        check(compress("holitom_outer", grid, keep=keep, **asdict(settings)), grid, *expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.11, 0.31, 0.83, 1.0])
@pytest.mark.parametrize("settings", OPTIONS, ids=range(len(OPTIONS)))
def test_as_released(shape: tuple[int, int, int], keep: float, settings: Settings) -> None:
    """Lengths say what is salient whatever the encoder attends to."""
    grid = grid_of(scenes(*shape), saliency=True)
    expected = released(lists(grid.values), scores(grid_of(grid.values)), keep, settings)
    check(compress("holitom_outer", grid, keep=keep, variant="released", **asdict(settings)), grid, *expected)


def test_still_places_are_said_once_by_hand() -> None:
    """Two scenes of three frames, five of whose six places are still: 2 x 5 means, and six others; nothing is lost."""
    values = noise(2, 2, 3).repeat_interleave(3, 0)
    values[:, 0, 1] = noise(6, 1, 1, seed=3)[:, 0, 0]
    values[1, 1, 2] += 0.01
    expected = values.flatten(0, 2).tolist()
    for start in (0, 18):
        for place in (0, 2, 3, 4, 5):
            of_window = values.flatten(1, 2)[start // 6 : start // 6 + 3, place]
            expected[start + place] = of_window.mean(0).tolist()
    source = [0, 1, 2, 3, 4, 5, 7, 13, 18, 19, 20, 21, 22, 23, 25, 31]
    found = compress("holitom_outer", grid_of(values), tokens=20, still=0.99)
    check(found, grid_of(values), source, [expected[s] for s in source])


def test_windows_of_a_long_video() -> None:
    """Longer than the slow version can do: ten scenes are ten windows."""
    values = noise(10, 3, 3).repeat_interleave(7, 0)
    found = compress("holitom_outer", grid_of(values), keep=0.5)
    check(found, grid_of(values), [t * 9 + p for t in range(0, 70, 7) for p in range(9)],
          values[::7].flatten(0, 2).tolist())  # fmt: skip


def test_places_of_the_release_are_made_up() -> None:
    grid = grid_of(scenes(6, 3, 4))
    found = compress("holitom_outer", grid, keep=0.25, variant="released")
    assert found.source is not None
    assert found.source[0] == 0 and found.source[-1] == grid.tokens - 1
    assert not torch.isclose(found.values, grid.values.flatten(0, 2)[found.source]).all(1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "paper"}, "variant='paper'; allowed are 'fixed', 'released'"),
        ({"max_window": 0}, "max_window=0 and neighbours=7 must be at least 1"),
        ({"neighbours": 0}, "neighbours=0 must be at least 1"),
        ({"own": 1.5}, r"own=1.5 and context=0.0 in \[0, 1\]"),
        ({"context": -0.1}, r"context=-0.1 in \[0, 1\]"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress("holitom_outer", grid_of(noise(2, 2, 2)), keep=0.5, **settings)
