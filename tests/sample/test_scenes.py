"""Scenes obey their rules, captions say what is there, and frames show it."""

from collections import Counter

import numpy as np
import pytest

from langdc.sample.render import draw, draw_video
from langdc.sample.scenes import (
    COLOURS,
    FRAMES_PER_SEGMENT,
    MOTIONS,
    SHAPES,
    SIZE,
    Segment,
    Thing,
    as_text,
    caption,
    sample_segment,
    sample_video,
)

SEGMENTS = [sample_segment(np.random.default_rng([seed, 1])) for seed in range(600)]


def _pixels_touched(thing: Thing) -> set[tuple[int, int]]:
    """Every pixel of the 15x15 squares around the object's centres, and those between them."""
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}[thing.motion]
    return {
        (thing.x + dx * step + i, thing.y + dy * step + j)
        for step in range(3 * (FRAMES_PER_SEGMENT - 1) + 1)
        for i in range(-7, 8)
        for j in range(-7, 8)
    }


@pytest.mark.parametrize("segment", SEGMENTS[:300], ids=len)
def test_objects_never_touch_and_stay_inside(segment: Segment) -> None:
    touched = [pixel for thing in segment for pixel in _pixels_touched(thing)]
    assert len(touched) == len(set(touched))
    assert all(0 <= x < SIZE and 0 <= y < SIZE for x, y in touched)


def test_everything_occurs_and_nothing_dominates() -> None:
    things = [thing for segment in SEGMENTS for thing in segment]
    for seen, values in (
        (Counter(len(segment) for segment in SEGMENTS), range(5)),
        (Counter(thing.colour for thing in things), COLOURS),
        (Counter(thing.shape for thing in things), SHAPES),
        (Counter(thing.motion for thing in things), MOTIONS),
    ):
        assert set(seen) == set(values)
        assert max(seen.values()) < 1.6 * min(seen.values())


def test_colours_of_a_segment_differ_and_captions_are_sorted_by_palette() -> None:
    order = {"red": 0, "green": 1, "blue": 2, "yellow": 3, "purple": 4, "cyan": 5}
    for segment in SEGMENTS:
        parts = caption(segment).split(" ; ") if segment else []
        ranks = [order[part.split()[0]] for part in parts]
        assert ranks == sorted(set(ranks))
        assert len(ranks) == len(segment)
        assert parts == [f"{t.colour} {t.shape} {t.motion}" for t in sorted(segment, key=lambda t: order[t.colour])]


def test_captions_of_known_scenes() -> None:
    segment = (Thing("red", "square", "left", 40, 20), Thing("blue", "ring", "still", 20, 50))
    assert caption(segment) == "red square left ; blue ring still"
    assert caption(segment, motions=False) == "red square ; blue ring"
    assert caption(()) == ""
    assert as_text([caption(segment), "", "red ring up"]) == "[1] red square left ; blue ring still [2] [3] red ring up"


def test_same_seed_same_video() -> None:
    one, two, other = (sample_video(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one == two != other


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_frames_show_the_object_where_it_is(shape: str, motion: str) -> None:
    thing = Thing("red", shape, motion, 32, 32)
    frames = draw((thing,), np.random.default_rng(0)).astype(int)
    for number, frame in enumerate(frames):
        ys, xs = np.nonzero((frame[..., 0] - frame[..., 1] > 90) & (frame[..., 0] - frame[..., 2] > 90))
        step = 3 * number
        dx, dy = {"left": (-step, 0), "right": (step, 0), "up": (0, -step), "down": (0, step), "still": (0, 0)}[motion]
        assert len(xs) > 60
        assert abs((xs.min() + xs.max()) / 2 - (32 + dx)) <= 1
        assert abs((ys.min() + ys.max()) / 2 - (32 + dy)) <= 1
        assert max(abs(xs - 32 - dx).max(), abs(ys - 32 - dy).max()) <= 7


def test_background_is_noisy_grey_of_each_segments_own_level() -> None:
    frames = draw_video([(), ()], np.random.default_rng(5)).astype(float)
    assert frames.shape == (2 * FRAMES_PER_SEGMENT, SIZE, SIZE, 3)
    assert 7 < frames[:4].std() < 9
    assert np.ptp(frames[:4].mean((0, 1, 2))) < 1
    assert abs(frames[:4].mean() - frames[4:].mean()) > 1
