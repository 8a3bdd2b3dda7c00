"""Where a scene of a video ends and the next begins: at frames that differ far more than usual from the one before."""

import math
from itertools import pairwise
from pathlib import Path

from langdc.video import probe, read_frames

_PER_SECOND, _SIDE, _NEIGHBOURS = 8, 32, 4
"""Frames that are compared, their height and width, and how many on each side say what change is usual."""
_CHANGE, _TIMES = 0.1, 2.0
"""A cut changes pixels by this share of their range on average, and that many times as much as frames nearby do."""
MIN_SECONDS = 1.0
"""No scene is shorter, unless the video is."""


def scene_bounds(
    path: str | Path, start: float | None = None, end: float | None = None, fps: float | None = None
) -> list[tuple[float | None, float | None]]:
    """Start and end, in seconds, of each scene of a video or clip, in order; `start` and `end` are the outermost.

    Hard cuts are found, to about 1/8 s; fades are not. ValueError as `langdc.video.read_frames`.
    """
    info = probe(path, fps)
    first, last = start or 0.0, info.seconds if end is None else end
    count = max(1, math.floor((last - first) * min(info.fps, _PER_SECOND)))
    frames = read_frames(path, frames=count, start=start, end=end, size=(_SIDE, _SIDE), fps=fps)
    pixels, seconds, cuts = frames.pixels.short(), frames.seconds.tolist(), []
    change = ((pixels[1:] - pixels[:-1]).abs().float().mean((1, 2, 3)) / 255).tolist()
    for place in sorted(range(len(change)), key=lambda place: -change[place]):
        near = change[max(0, place - _NEIGHBOURS) : place] + change[place + 1 : place + 1 + _NEIGHBOURS]
        strong = change[place] >= max(_CHANGE, _TIMES * sum(near) / max(len(near), 1))
        cut = (seconds[place] + seconds[place + 1]) / 2  # between two frames, so that rounding moves none
        if strong and all(abs(cut - other) >= MIN_SECONDS for other in (first, last, *cuts)):
            cuts.append(cut)
    return list(pairwise([start, *sorted(cuts), end]))
