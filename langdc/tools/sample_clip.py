"""A sample video that is drawn on demand."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from langdc.sample.render import draw_video
from langdc.sample.scenes import FPS, caption, sample_video
from langdc.video import write_video


@contextmanager
def sample_clip(seed: int) -> Iterator[tuple[Path, list[str]]]:
    """Write the mp4 of a seed to a temporary folder: its path and the caption of each segment; ValueError below 0."""
    if seed < 0:
        raise ValueError(f"The seed is {seed}; give 0 or more.")
    rng = np.random.default_rng([seed, 7])
    scenes = sample_video(rng)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"sample-{seed}.mp4"
        write_video(path, draw_video(scenes, rng), FPS)
        yield path, [caption(scene) for scene in scenes]
