"""Fewer frames, lower resolution and average pooling, place by place."""

import math

from tests.reference.vectors import Video, mean


def middle_frames(frames: int, count: int) -> list[int]:
    """The frame in the middle of each of `count` equal parts of a video."""
    return [math.floor((part + 0.5) * frames / count) for part in range(count)]


def smaller_side(height: int, width: int, tokens_per_frame: float) -> tuple[int, int]:
    """The most rows of a grid shaped like the frame's, then the most columns, that a number of tokens allows."""
    fitting = [rows for rows in range(1, height + 1) if rows * rows * width <= tokens_per_frame * height]
    rows = max(fitting, default=1)
    return rows, max(columns for columns in range(1, width + 1) if rows * columns <= tokens_per_frame)


def averaged(video: Video, height: int, width: int, rows: int, columns: int) -> Video:
    """Frames of height x width averaged to rows x columns; cells reach from the floor to the ceiling of their edges."""
    found = []
    for frame in video:
        cells = []
        for i in range(rows):
            for j in range(columns):
                inside = [
                    frame[a * width + b]
                    for a in range(math.floor(i * height / rows), math.ceil((i + 1) * height / rows))
                    for b in range(math.floor(j * width / columns), math.ceil((j + 1) * width / columns))
                ]
                cells.append(mean(inside))
        found.append(cells)
    return found


def smaller_box(frames: int, height: int, width: int, wanted: int) -> tuple[int, int, int]:
    """Steps by the cube root of the share kept, then the frame that this allows, then as many steps as fit."""
    share = wanted / (frames * height * width)
    steps = [n for n in range(1, min(frames, wanted) + 1) if (n / frames) ** 3 <= share * (1 + 1e-12)]
    rows, columns = smaller_side(height, width, wanted / max(steps, default=1))
    return min(frames, wanted // (rows * columns)), rows, columns


def averaged_in_time(video: Video, steps: int) -> Video:
    """Frames averaged to `steps`, each place on its own; steps reach from the floor to the ceiling of their edges."""
    edges = [(math.floor(n * len(video) / steps), math.ceil((n + 1) * len(video) / steps)) for n in range(steps)]
    return [[mean([frame[place] for frame in video[a:b]]) for place in range(len(video[0]))] for a, b in edges]
