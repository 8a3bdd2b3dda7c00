"""Draw sample segments as frames: coloured shapes on a noisy background."""

import numpy as np

from langdc.sample.scenes import BACKGROUNDS, COLOURS, FRAMES_PER_SEGMENT, SIZE, Segment, Thing


def _mask(thing: Thing, frame: int) -> np.ndarray:
    """The pixels of an object in a frame of its segment: bool [height, width]."""
    ys, xs = np.mgrid[0:SIZE, 0:SIZE]
    x, y = thing.centre(frame)
    dx, dy, radius = xs - x, ys - y, thing.radius
    far, near, distance = np.maximum(abs(dx), abs(dy)), np.minimum(abs(dx), abs(dy)), np.hypot(dx, dy)
    if thing.shape == "square":
        return far <= radius - 1
    if thing.shape == "ring":
        return (distance <= radius) & (distance >= radius * 0.54)
    if thing.shape == "triangle":
        return (dy <= radius - 1) & (abs(dx) * 2 <= dy + radius) & (dy >= -radius)
    return (near * 7 <= radius * 2) & (far <= radius)


def draw(segment: Segment, rng: np.random.Generator) -> np.ndarray:
    """Draw one segment with its own level of the background and pixel noise: RGB uint8 [frames, height, width, 3]."""
    ground, reach = BACKGROUNDS[segment.background]
    level = np.array(ground, dtype=float) + rng.integers(-reach, reach)
    frames = np.tile(level, (FRAMES_PER_SEGMENT, SIZE, SIZE, 1))
    for thing in segment:
        colour = np.array(COLOURS[thing.colour]) * (1 - abs(thing.shade)) + 255 * max(thing.shade, 0)
        for frame in range(thing.start, FRAMES_PER_SEGMENT):
            frames[frame][_mask(thing, frame)] = colour
    frames += rng.normal(0, 8, frames.shape)
    return frames.round().clip(0, 255).astype(np.uint8)


def draw_video(video: list[Segment], rng: np.random.Generator) -> np.ndarray:
    """Draw all segments one after the other: uint8 [segments * frames, height, width, 3]."""
    return np.concatenate([draw(segment, rng) for segment in video])
