"""Draw sample segments as frames: coloured shapes on a noisy grey background."""

import numpy as np

from langdc.sample.scenes import COLOURS, FRAMES_PER_SEGMENT, RADIUS, SIZE, Segment


def _masks(dx: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    """The pixels of each shape, by their distances from its centre."""
    far, near, distance = np.maximum(abs(dx), abs(dy)), np.minimum(abs(dx), abs(dy)), np.hypot(dx, dy)
    return {
        "square": far <= RADIUS - 1,
        "ring": (distance <= RADIUS) & (distance >= RADIUS - 3.2),
        "triangle": (dy <= RADIUS - 1) & (abs(dx) * 2 <= dy + RADIUS),
        "cross": (near <= 2) & (far <= RADIUS),
    }


def draw(segment: Segment, rng: np.random.Generator) -> np.ndarray:
    """Draw one segment with its own grey level and pixel noise: RGB uint8 [frames, height, width, 3]."""
    ys, xs = np.mgrid[0:SIZE, 0:SIZE]
    grey = rng.integers(80, 176)
    frames = np.full((FRAMES_PER_SEGMENT, SIZE, SIZE, 3), float(grey))
    for thing in segment:
        for frame, pixels in enumerate(frames):
            x, y = thing.centre(frame)
            pixels[_masks(xs - x, ys - y)[thing.shape]] = COLOURS[thing.colour]
    frames += rng.normal(0, 8, frames.shape)
    return frames.round().clip(0, 255).astype(np.uint8)


def draw_video(video: list[Segment], rng: np.random.Generator) -> np.ndarray:
    """Draw all segments one after the other: uint8 [segments * frames, height, width, 3]."""
    return np.concatenate([draw(segment, rng) for segment in video])
