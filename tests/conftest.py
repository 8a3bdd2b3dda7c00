"""What all tests share: one thread per process, and one real sample video."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from langdc.sample.render import draw_video
from langdc.sample.scenes import FPS
from langdc.sample.scenes import sample_video as sample_scenes
from langdc.video import write_video

torch.set_num_threads(1)
# What is tested heeds this and opens no thread pool; a process forked beside one waits for ever at its first product.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """What is imported by now stays; every phase of a training collects garbage, and would look through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def sample_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One mp4 of the sample set's kind: 16 frames, 64x64, 8 fps, 4 segments of 4 frames."""
    rng = np.random.default_rng(7)
    path = tmp_path_factory.mktemp("sample") / "video.mp4"
    write_video(path, draw_video(sample_scenes(rng), rng), FPS)
    return path
