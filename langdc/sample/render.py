"""Draw sample segments as frames: coloured shapes on a noisy grey background."""

import numpy as np

from langdc.sample.scenes import COLOURS, FRAMES_PER_SEGMENT, RADIUS, SIZE, Segment


def _square(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    return np.maximum(abs(dx), abs(dy)) <= RADIUS - 1


def _ring(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    distance = np.hypot(dx, dy)
    return (distance <= RADIUS) & (distance >= RADIUS - 3.2)


def _triangle(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    return (dy <= RADIUS - 1) & (abs(dx) * 2 <= dy + RADIUS)


def _cross(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    arms = np.minimum(abs(dx), abs(dy)) <= 2
    return arms & (np.maximum(abs(dx), abs(dy)) <= RADIUS)


MASKS = {"square": _square, "ring": _ring, "triangle": _triangle, "cross": _cross}


def draw(segment: Segment, rng: np.random.Generator) -> np.ndarray:
    """Draw one segment with its own grey level and pixel noise: RGB uint8 [frames, height, width, 3]."""
    ys, xs = np.mgrid[0:SIZE, 0:SIZE]
    grey = rng.integers(80, 176)
    frames = np.full((FRAMES_PER_SEGMENT, SIZE, SIZE, 3), float(grey))
    for thing in segment:
        for frame, pixels in enumerate(frames):
            x, y = thing.centre(frame)
            pixels[MASKS[thing.shape](xs - x, ys - y)] = COLOURS[thing.colour]
    frames += rng.normal(0, 8, frames.shape)
    return frames.round().clip(0, 255).astype(np.uint8)


def draw_video(video: list[Segment], rng: np.random.Generator) -> np.ndarray:
    """Draw all segments one after the other: uint8 [segments * frames, height, width, 3]."""
    return np.concatenate([draw(segment, rng) for segment in video])
