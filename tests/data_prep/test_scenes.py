"""Cuts between scenes of drawn videos: found where they are, and nowhere else."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdc.prepare.scenes import scene_bounds
from langdc.sample.render import draw_video
from langdc.sample.scenes import FPS, sample_video
from langdc.video import write_video


def scene(seed: int, frames: int, speed: int = 1) -> np.ndarray:
    """A smooth picture that is panned."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 16, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(coarse).resize((64 + speed * frames, 48), Image.Resampling.BICUBIC))
    return np.stack([wide[:, speed * n : speed * n + 64] for n in range(frames)])


@pytest.mark.parametrize("fps", [8, 25])
def test_cuts_are_found_to_an_eighth_of_a_second(tmp_path: Path, fps: int) -> None:
    lengths = [3 * fps, 2 * fps + 3, 4 * fps]
    write_video(tmp_path / "v.mp4", np.concatenate([scene(n, count) for n, count in enumerate(lengths)]), fps)
    found = scene_bounds(tmp_path / "v.mp4")
    assert len(found) == 3 and (found[0][0], found[-1][1]) == (None, None)
    assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]
    wanted = [3.0, 5.0 + 3 / fps]
    assert [start for start, _ in found[1:]] == pytest.approx(wanted, abs=1 / 8)
    inside = scene_bounds(tmp_path / "v.mp4", 1.5, 4.5)
    assert [each for pair in inside for each in pair] == pytest.approx([1.5, 3.0, 3.0, 4.5], abs=1 / 8)


def test_motion_and_noise_are_no_cuts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_video(tmp_path / "pan.mp4", scene(0, 60, speed=4), 15)
    write_video(tmp_path / "noise.mp4", rng.integers(0, 256, (40, 48, 64, 3), dtype=np.uint8), 10)
    write_video(tmp_path / "shapes.mp4", draw_video(sample_video(rng), rng), FPS)
    write_video(tmp_path / "one.mp4", scene(0, 1), 10)
    for name in ("pan", "noise", "shapes", "one"):
        assert scene_bounds(tmp_path / f"{name}.mp4") == [(None, None)]


def test_no_scene_is_shorter_than_a_second(tmp_path: Path) -> None:
    parts = [scene(n, count) for n, count in enumerate([30, 3, 30, 2])]  # a flash, and one at the end
    write_video(tmp_path / "v.mp4", np.concatenate(parts), 10)
    bounds = [0.0, *(end for _, end in scene_bounds(tmp_path / "v.mp4")[:-1] if end is not None), 6.5]
    assert len(bounds) == 3 and min(b - a for a, b in pairwise(bounds)) >= 1
