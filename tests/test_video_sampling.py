"""Which frames of a video are taken."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from langdc.video import _segment_indices, _uniform_indices


@pytest.mark.parametrize(
    ("total", "frames", "expected"),
    [
        (16, 4, [2, 6, 10, 14]),
        (10, 4, [1, 3, 6, 8]),
        (5, 5, [0, 1, 2, 3, 4]),
        (9, 1, [4]),
        (2, 4, [0, 0, 1, 1]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_uniform_indices(total: int, frames: int, expected: list[int]) -> None:
    assert _uniform_indices(total, frames) == expected


@pytest.mark.parametrize("total", [1, 3, 7, 16, 100])
@pytest.mark.parametrize("frames", [1, 4, 16, 33])
def test_uniform_indices_are_the_middles_of_equal_parts(total: int, frames: int) -> None:
    middles = [Fraction(total, frames) * (i + Fraction(1, 2)) for i in range(frames)]
    assert _uniform_indices(total, frames) == [int(middle) for middle in middles]


@pytest.mark.parametrize(
    ("total", "segments", "each", "expected"),
    [
        (16, 4, 4, list(range(16))),
        (16, 4, 2, [1, 3, 5, 7, 9, 11, 13, 15]),
        (10, 3, 1, [1, 4, 8]),
        (10, 3, 2, [0, 2, 3, 5, 7, 9]),
        (2, 4, 1, [0, 0, 1, 1]),
        (1, 2, 2, [0, 0, 0, 0]),
    ],
)
def test_segment_indices(total: int, segments: int, each: int, expected: list[int]) -> None:
    assert _segment_indices(total, segments, each) == expected


def test_segment_indices_stay_in_their_segment() -> None:
    for total in range(1, 60):
        for segments in (1, 3, 4, 7):
            picked = np.array(_segment_indices(total, segments, 4)).reshape(segments, 4)
            assert (np.diff(picked.ravel()) >= 0).all()
            for number, part in enumerate(picked):
                start, end = number * total // segments, (number + 1) * total // segments
                assert ((part >= start) & (part < max(end, start + 1))).all()


@pytest.mark.parametrize(
    "call", [lambda: _uniform_indices(0, 4), lambda: _uniform_indices(4, 0), lambda: _segment_indices(4, -1, 2)]
)
def test_indices_need_positive_numbers(call: Callable) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        call()
