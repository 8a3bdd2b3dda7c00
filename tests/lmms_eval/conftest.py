"""A small task with its files, and the real command on it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdc.sample.questions import ask_all
from langdc.sample.render import draw_video
from langdc.sample.scenes import FPS, sample_video
from langdc.video import read_frames, write_video

TASKS = Path(__file__).parent / "tasks"
COMMAND = Path(sys.executable).with_name("lmms-eval")
DAMAGED = "damaged.mp4"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need lmms-eval, which the project's own environment does without."""
    if importlib.util.find_spec("lmms_eval") is None:
        why = pytest.mark.skip(reason="lmms-eval is not installed here; `make test-lmms-eval` runs this")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(why)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos with their questions, and one of these about a picture, two videos, nothing and a damaged file."""
    made, rng = tmp_path_factory.mktemp("lmms"), np.random.default_rng(5)
    rows = []
    for name in ("a.mp4", "b.mp4"):
        scenes = sample_video(rng)
        write_video(made / name, draw_video(scenes, rng), FPS)
        rows += [{"shown": [name], "question": q.text, "answer": q.answer} for q in ask_all(rng, scenes)]
    frame = read_frames(made / "a.mp4", frames=1).pixels[0].permute(1, 2, 0).numpy()
    Image.fromarray(frame).save(made / "a.png")
    (made / DAMAGED).write_bytes((made / "a.mp4").read_bytes()[:500])
    for shown in (["a.png"], ["a.mp4", "b.mp4"], [], [DAMAGED]):
        rows.append({**rows[0], "shown": shown})
    (made / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture(scope="session")
def run(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command on a task of the folder, with its results under a name."""

    def command(model_args: str, name: str, task: str = "langdc_shapes") -> subprocess.CompletedProcess[str]:
        options = {
            "model": "langdc", "model_args": model_args, "tasks": task, "include_path": TASKS, "output_path": name,
            "use_cache": "cache", "device": "cpu",
            "verbosity": "DEBUG",  # else lmms-eval exits with 0 whatever happens
        }  # fmt: skip
        words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
        home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "COLUMNS": "400", "NO_COLOR": "1"}
        return subprocess.run(
            [COMMAND, *words, "--log_samples"],
            cwd=folder, env={**os.environ, **home}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return command
