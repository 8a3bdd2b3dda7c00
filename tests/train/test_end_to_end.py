"""LangDC and `distill` on a tiny Qwen2.5-VL, from mp4 files to an evaluation, by the commands that people type."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from langdc import VideoLM, jsonl
from langdc.video import write_video

ROOT = Path(__file__).parents[2]
ANSWERS = ["a dog", "red ring", "two", "blue ball", "left", "square"]
WORDS = ["red", "blue", "green", "dog", "cat", "ring", "ball", "square", "left", "right", "up", "down"]
BACKBONE = {"name": "qwen2_5_vl", "source": "tiny:qwen2_5_vl", "frames": 8}
LANGDC = {
    "name": "langdc",
    "captioner": "tiny:qwen2",
    "prompt": "describe",
    "layer": 2,
    "pool": [2],
    "frames_per_segment": 2,
    "max_soft_tokens": 12,
    "segment_marker": True,
}
CAPTIONER = ["compressor.projectors.*", "compressor.captioner.*"]
POST = ["compressor.post_projector.*", "compressor.segment_marker.*"]
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short mp4 files of different length, with captions of 0 to 8 words by segment, questions, and a text."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number, answer in enumerate(ANSWERS):
        draws = np.random.default_rng(number)
        still = draws.random((1, 48, 64, 3))
        pixels = (0.7 * still + 0.3 * draws.random((12 + 2 * number, 48, 64, 3))) * 255
        write_video(folder / f"{number}.mp4", np.ascontiguousarray(pixels.astype(np.uint8)), 8)
        captions = [" ".join(draws.choice(WORDS, draws.integers(0, 9))) for _ in range(2)]
        questions = [
            {"kind": "what", "question": "what is in the video ?", "answer": answer},
            {"kind": "how", "question": "how many ?", "answer": "three"},
        ]
        rows.append(
            {
                "id": f"v{number}",
                "video": f"{number}.mp4",
                "segments": [{"caption": caption} for caption in captions],
                "questions": questions,
            }
        )
    jsonl.write_lines(folder / "videos.jsonl", rows)
    text = [
        {"id": f"t{n}", "questions": [{"kind": "t", "question": "two and one ?", "answer": "three"}]} for n in (0, 1)
    ]
    jsonl.write_lines(folder / "text.jsonl", text)
    return folder


def config(folder: Path, name: str, **settings: Any) -> Path:
    """A run's file; `train` is merged into what all runs share."""
    train = {"batch_size": 2, "learning_rate": 2e-3, **settings.pop("train")}
    tree = {
        "model": {"backbone": BACKBONE, "compressor": LANGDC},
        "output": str(folder / name),
        "save_steps": 2,
        "log_steps": 1,
        **settings,
        "train": train,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def stages(folder: Path, data: Path) -> list[Path]:
    videos, both = [str(data / "videos.jsonl")], [str(data / f"{name}.jsonl") for name in ("videos", "text")]
    start = {"start": str(folder / "stage1")}
    return [
        config(folder, "stage1", objective="compress",
               train={"data": videos, "trainable": ["compressor.projectors.*"], "steps": 4}),
        config(folder, "stage2", objective="compress", **start,
               train={"data": videos, "trainable": CAPTIONER, "steps": 6}),
        config(folder, "stage3", objective="answer", start=str(folder / "stage2"),
               train={"data": both, "trainable": POST, "steps": 6, "lora": LORA}),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def langdc(*words: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "langdc.cli", *map(str, words)],
        env=environment(), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_processes(file: Path, *overrides: str) -> None:
    """By the deepspeed launcher, on the door as it is typed."""
    command = ["-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", str(free_port())]
    done = subprocess.run(
        [sys.executable, *command, "train/stage2.py", "--config", str(file), *overrides],
        env=environment(), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in jsonl.read(run / "log.jsonl")]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    langdc("train", *stages(folder, data))
    return folder


def test_all_stages_by_one_command(trained: Path) -> None:
    for name, steps in (("stage1", 4), ("stage2", 6), ("stage3", 6)):
        assert json.loads((trained / name / "finished.json").read_text())["steps"] == steps
        assert len(losses(trained / name)) == steps
    assert losses(trained / "stage2")[-1] < losses(trained / "stage1")[0]


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_a_killed_run_goes_on_to_the_same_bits(trained: Path, data: Path, tmp_path: Path, stage: str) -> None:
    file = {path.stem: path for path in stages(tmp_path, data)}[stage]
    start = trained / ("stage1" if stage == "stage2" else "stage2")
    command = [sys.executable, "-m", "langdc.cli", "train", str(file), f"start={start}"]
    running = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while running.poll() is None and not list((tmp_path / stage).glob("resume/**/complete")):
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / stage / "finished.json").exists()
    langdc("train", file, f"start={start}")
    assert losses(tmp_path / stage) == losses(trained / stage)
    found, expected = (load_file(folder / stage / "model.safetensors") for folder in (tmp_path, trained))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("stage", "zero"), [("stage2", 2), ("stage3", 3)])
def test_two_processes_learn_what_one_does(trained: Path, data: Path, tmp_path: Path, zero: int, stage: str) -> None:
    file = {path.stem: path for path in stages(tmp_path, data)}[stage]
    start = trained / ("stage1" if stage == "stage2" else "stage2")
    two_processes(file, f"start={start}", "train.batch_size=1", f"deepspeed={ROOT}/configs/deepspeed/zero{zero}.json")
    assert losses(tmp_path / stage) == pytest.approx(losses(trained / stage), abs=1e-4)


def test_export_reload_and_evaluation(trained: Path, data: Path, tmp_path: Path) -> None:
    langdc("export", trained / "stage3", tmp_path / "exported")
    video, question = data / "3.mp4", "what is in the video ?"
    before, after = (VideoLM.from_pretrained(path) for path in (trained / "stage3", tmp_path / "exported"))
    replies = [lm.ask(video, question, max_new_tokens=6) for lm in (before, after)]
    assert replies[0].text == replies[1].text and replies[0].captions == replies[1].captions
    assert replies[0].tokens == replies[1].tokens
    tree = {
        "output": str(tmp_path / "eval"),
        "task": {"name": "sample", "data": str(data / "videos.jsonl")},
        "entries": [{"name": "langdc", "model": str(tmp_path / "exported")}],
        "max_new_tokens": 6,
    }
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(tree))
    langdc("eval", tmp_path / "eval.yaml")
    langdc("report", tmp_path / "eval")
    assert "langdc" in (tmp_path / "eval" / "table.md").read_text()


def test_distillation_halves_the_divergence(data: Path, tmp_path: Path) -> None:
    """The compressor learns from what the same model says of all tokens; the untrained one is the first step's."""
    file = config(
        tmp_path, "distill", objective={"name": "distill", "temperature": 2.0},
        model={"backbone": BACKBONE, "compressor": {"name": "resampler", "queries": 6, "frames_per_segment": 2}},
        train={"data": [str(data / "videos.jsonl")], "trainable": ["compressor.*"], "steps": 40, "batch_size": 6,
               "learning_rate": 3e-3},
    )  # fmt: skip
    langdc("train", file)
    found = losses(tmp_path / "distill")
    assert np.mean(found[-3:]) < 0.5 * np.mean(found[:3])
