"""Benchmarks asked through the real loop: tiny videos, a tiny model that really looks at them, and known replies."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from langdc.evaluate.loop import evaluate
from langdc.evaluate.tasks import build
from langdc.evaluate.tasks.base import Benchmark
from langdc.pipeline import VideoLM
from langdc.video import write_video
from tests.evaluate import runs


def write_videos(*paths: Path) -> None:
    """Real mp4 files of 8 frames."""
    for seed, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = np.random.default_rng(seed).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
        write_video(path, frames, fps=8)


def benchmark(name: str, **settings: object) -> Benchmark:
    """The benchmark as a config would name it."""
    task = build(name, **settings)
    assert isinstance(task, Benchmark)
    return task


def write_json(path: Path, tree: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


def ask(prepared: Path, output: Path, task: dict, replies: Sequence[str]) -> tuple[list[dict], list[str]]:
    """The answer lines of one entry by their keys, and the prompts as they were put; `replies` go with the prompts."""
    prompts: list[str] = []

    class Replying(VideoLM):
        def answer(self, batch, **generation):
            said = replies[len(prompts) : len(prompts) + len(batch)]
            prompts.extend(prompt for _, prompt in batch)
            found = super().answer(batch, **generation)
            return [dataclasses.replace(answer, text=text) for answer, text in zip(found, said, strict=True)]

    config = runs.config(prepared, output=str(output), task=task, timing_videos=0, max_new_tokens=1)
    config = config.model_copy(update={"entries": config.entries[1:2]})
    asked = build(config.task.name, **config.task.settings)
    folder = evaluate(config, asked, load=lambda entry: Replying.from_pretrained(entry.model))
    lines = folder.lines(config.entries[0].name)
    return sorted((line for line in lines if line["type"] == "answer"), key=lambda line: line["key"]), prompts
