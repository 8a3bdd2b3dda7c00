"""Small data sets for the tests of `langdc data check`, and what it found."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from langdc import jsonl
from langdc.video import write_video
from tests import tiny


def movie(path: Path, seed: int, frames: int = 16, size: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8), 8)
    return path


def asked(**changes: Any) -> dict[str, Any]:
    return {"kind": "k", "question": "what is it ?", "answer": "a ring", **changes}


def found_in(folder: Path) -> dict[int, list[tuple[str, bool]]]:
    lines: dict[int, list[tuple[str, bool]]] = {}
    for fault in jsonl.read(folder / "faults.jsonl", strict=True):
        lines.setdefault(fault["line"], []).append((fault["kind"], fault["fatal"]))
    return lines


def good(root: Path, count: int = 4, **changes: Any) -> Path:
    """Records without faults; each has a video of its own."""
    for number in range(count):
        movie(root / f"v{number}.mp4", number)
    lines = [{"id": f"v{n}", "video": f"v{n}.mp4", "questions": [asked()], **changes} for n in range(count)]
    jsonl.write_lines(root / "data.jsonl", lines)
    return root / "data.jsonl"


def run_file(folder: Path, data: Path, model: dict | None = None, **changes: Any) -> Path:
    """A training config."""
    settings = {"data": [str(data)], "trainable": ["compressor.*"], "steps": 2, "batch_size": 2, **changes}
    built = model or tiny.config("langdc").model_dump(mode="json")
    tree = {"model": built, "objective": "answer", "train": settings, "output": str(folder / "run"), "log_steps": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"
