"""Scenes obey their rules, captions say what is there, and frames show it."""

from collections import Counter

import numpy as np
import pytest

from langdc.sample.render import draw, draw_video
from langdc.sample.scenes import (
    BACKGROUNDS,
    COLOURS,
    FRAMES_PER_SEGMENT,
    LATEST,
    MOTIONS,
    RADII,
    SHADES,
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
    """Every pixel of the squares around the object's centres, and those between them."""
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}[thing.motion]
    return {
        (thing.x + dx * step + i, thing.y + dy * step + j)
        for step in range(3 * (FRAMES_PER_SEGMENT - 1) + 1)
        for i in range(-thing.radius, thing.radius + 1)
        for j in range(-thing.radius, thing.radius + 1)
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
        (Counter(thing.start for thing in things), range(LATEST + 1)),
        (Counter(segment.background for segment in SEGMENTS), BACKGROUNDS),
    ):
        assert set(seen) == set(values)
        assert max(seen.values()) < 1.6 * min(seen.values())
    radii = Counter(thing.radius for thing in things)
    assert set(radii) == set(range(RADII[0], RADII[1] + 1))
    assert min(radii.values()) > 150, "large ones find room less often"
    shades = np.array([thing.shade for thing in things])
    assert SHADES[0] <= shades.min() < -0.25 and 0.25 < shades.max() <= SHADES[1]


def test_colours_of_a_segment_differ_and_captions_are_sorted_by_palette() -> None:
    order = {"red": 0, "green": 1, "blue": 2, "yellow": 3, "purple": 4, "cyan": 5}
    for segment in SEGMENTS:
        parts = caption(segment).split(" ; ") if segment else []
        ranks = [order[part.split()[0]] for part in parts]
        assert ranks == sorted(set(ranks))
        assert len(ranks) == len(segment)
        assert parts == [f"{t.colour} {t.shape} {t.motion}" for t in sorted(segment, key=lambda t: order[t.colour])]


def test_captions_of_known_scenes() -> None:
    segment = Segment((Thing("red", "square", "left", 40, 20), Thing("blue", "ring", "still", 20, 50)), "white")
    assert caption(segment) == "red square left ; blue ring still"
    assert caption(segment, motions=False) == "red square ; blue ring"
    assert caption(Segment()) == ""
    assert caption(segment, places=True) == "red square left upper right ; blue ring still lower left"
    assert caption(segment, motions=False, places=True) == "red square upper right ; blue ring lower left"
    assert caption(Segment(), places=True) == ""
    assert as_text([caption(segment), "", "red ring up"]) == "[1] red square left ; blue ring still [2] [3] red ring up"


def test_same_seed_same_video() -> None:
    one, two, other = (sample_video(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one == two != other


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_frames_show_the_object_where_it_is(shape: str, motion: str) -> None:
    thing = Thing("red", shape, motion, 32, 32)
    frames = draw(Segment((thing,)), np.random.default_rng(0)).astype(int)
    for number, frame in enumerate(frames):
        ys, xs = np.nonzero((frame[..., 0] - frame[..., 1] > 90) & (frame[..., 0] - frame[..., 2] > 90))
        step = 3 * number
        dx, dy = {"left": (-step, 0), "right": (step, 0), "up": (0, -step), "down": (0, step), "still": (0, 0)}[motion]
        assert len(xs) > 60
        assert abs((xs.min() + xs.max()) / 2 - (32 + dx)) <= 1
        assert abs((ys.min() + ys.max()) / 2 - (32 + dy)) <= 1
        assert max(abs(xs - 32 - dx).max(), abs(ys - 32 - dy).max()) <= 7


@pytest.mark.parametrize("shape", SHAPES)
def test_size_shade_and_start_are_seen(shape: str) -> None:
    def red(**changed: float) -> np.ndarray:
        thing = Thing("red", shape, "still", 32, 32, **changed)
        frames = draw(Segment((thing,), "black"), np.random.default_rng(0)).astype(int)
        return np.where(np.ptp(frames, axis=-1) > 70, frames[..., 0], 0)

    sizes = [(red(radius=radius)[0] > 0).sum() for radius in range(RADII[0], RADII[1] + 1)]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]
    for radius in RADII:
        ys, xs = np.nonzero(red(radius=radius)[0])
        assert abs(np.ptp(xs) - 2 * radius) <= 2 and abs(np.ptp(ys) - 2 * radius) <= 2
    dark, light = ((seen := red(shade=shade))[seen > 0].mean() for shade in SHADES)
    assert light - dark > 50
    assert [bool(frame.any()) for frame in red(start=1)] == [False, True, True, True]


def test_background_is_noisy_and_of_each_segments_own_level() -> None:
    frames = draw_video([Segment((), name) for name in BACKGROUNDS], np.random.default_rng(5)).astype(float)
    assert frames.shape == (4 * FRAMES_PER_SEGMENT, SIZE, SIZE, 3)
    assert 7 < frames[:4].std((0, 1, 2)).mean() < 9
    means = frames.reshape(4, -1, 3).mean(1)
    apart = [np.abs(means[a] - means[b]).max() for a in range(4) for b in range(a)]
    assert min(apart) > 30
    again = draw_video([Segment((), "grey")] * 2, np.random.default_rng(5)).astype(float)
    assert np.ptp(again[:4].mean((1, 2, 3))) < 1
    assert abs(again[:4].mean() - again[4:].mean()) > 1
