"""The pipeline of the sample by its commands, with few videos and steps: how long each takes, starting included."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.measure import Place, Row

ROOT = Path(__file__).resolve().parent.parent.parent
RUNS = ("stage1", "stage2_image", "stage2_density", "stage2_align", "stage2_post", "stage3")
EVALUATION = """\
task: {name: sample, data: data/sample/test.jsonl}
output: runs/sample/eval
reference: langdc
max_new_tokens: 8
batch_size: 8
entries:
  - {name: langdc, model: runs/sample/langdc/stage3}
  - {name: langdc alone, model: runs/sample/langdc/stage3, limit: 2}
"""


def rows(place: Place) -> Iterator[Row]:
    """A line per command; the first that fails ends it."""
    videos, steps = (8, 1) if place.tiny else (256, 20)
    (place.folder / "eval.yaml").write_text(EVALUATION)
    commands = {
        "data": ["data", "sample", "--train", f"{videos}", "--test", f"{videos // 4}", "--images", f"{videos}"],
        "train, stages 1 and 2": ["train", *(f"sample/langdc/{name}" for name in RUNS[:3]), f"train.steps={steps}"],
        "train, alignment": ["train", f"sample/langdc/{RUNS[3]}"],
        "train, stages 2 and 3": ["train", *(f"sample/langdc/{name}" for name in RUNS[4:]), f"train.steps={steps}"],
        "eval": ["eval", "eval.yaml"],
        "report": ["report", "runs/sample/eval"],
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if place.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for name, words in commands.items():
        started = time.perf_counter()
        command = [sys.executable, "-m", "langdc.cli", *words]
        done = subprocess.run(command, cwd=place.folder, env=environment, check=False)
        taken, code = time.perf_counter() - started, done.returncode
        yield {"table": "commands", "command": name, "videos": videos, "s": taken, "exit code": code}
        if code:
            raise SystemExit(f"`langdc {' '.join(words)}` ended with exit code {code}.")
