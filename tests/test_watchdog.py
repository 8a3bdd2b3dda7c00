"""Every process reports a hang, with its rank and position, and ends."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from langdc import distributed, watchdog
from langdc.watchdog import Watchdog, beat, noting_modules

ROOT = Path(__file__).parents[1]


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2))
        self.nap = 0.0

    def forward(self, values):
        values = self.inner(values)
        time.sleep(self.nap)
        return values


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(watchdog, "REPORT_SECONDS", 0.05)


@pytest.fixture
def watched(short, tmp_path: Path):
    model, codes = nn.Sequential(nn.Linear(2, 2), Part()), list[int]()
    with Watchdog(0.4, tmp_path, leave=codes.append), noting_modules(model):
        beat("step 6")
        yield model, codes


def test_a_step_that_takes_too_long_is_told_and_ended(watched, capfd):
    model, codes = watched
    model[1].nap = 1.5
    model(torch.zeros(1, 2))
    said = capfd.readouterr().err
    assert codes == [watchdog.EXIT_CODE]
    assert "process 0 of 1" in said and "after step 6" in said and "Module entered last: 1.inner." in said
    assert "in forward" in said, "the stack"


def test_steps_that_end_in_time_keep_it_quiet(watched, capfd):
    model, codes = watched
    model[1].nap = 0.25
    for step in range(7, 11):
        model(torch.zeros(1, 2))
        beat(f"step {step}")
    assert not codes and not capfd.readouterr().err


def test_before_any_module_it_says_what_it_waits_for(watched, capfd):
    _, codes = watched
    time.sleep(1.2)
    assert codes and "waits for data, a file or another process" in capfd.readouterr().err


def test_outside_of_its_context_and_without_seconds_it_ends_nothing(short, tmp_path: Path):
    codes: list[int] = []
    with Watchdog(0.2, tmp_path, leave=codes.append):
        pass
    with Watchdog(None, tmp_path, leave=codes.append):
        time.sleep(0.6)
    assert not codes and not list(tmp_path.iterdir())


def test_whoever_waits_for_others_counts_what_they_finish(short, tmp_path: Path, monkeypatch, capfd):
    """And says at what it saw them last, once they finish nothing any more."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    codes: list[int] = []
    with Watchdog(0.4, tmp_path, leave=codes.append), distributed.waiting():
        for number in range(12):
            (tmp_path / ".alive-1").write_text(f"video {number}")
            time.sleep(0.1)
        assert not codes
        time.sleep(1.0)
    said = capfd.readouterr().err
    assert codes == [watchdog.EXIT_CODE]
    assert "It waits for other processes (process 1, last seen at: video 11)" in said
    assert not (tmp_path / ".alive-0").exists()


PROGRAM = """
import os, sys, time
from pathlib import Path
from torch.nn.modules.module import register_module_forward_hook
from langdc import checkpoint, features, watchdog
from langdc.train.run import train
from tests.train import small
calls = 0
watchdog.REPORT_SECONDS = 10.0  # whoever ends first breaks the connection of the other, which has to report by then
def impatient():
    watchdog._current.seconds = 20.0  # from here on: what came before, as the start of training, takes long under load
def nap(module, *_):
    global calls
    if module is layer:
        calls += 1
        if calls == {"step": 3, "save": 9}.get(sys.argv[2]):
            impatient()
            if sys.argv[2] == "step" and os.environ["RANK"] == "1":
                time.sleep(600)
config = small.run_config(
    small.langdc(), "images", objective="compress", trainable=["compressor.projectors.*"], batch_size=1, steps=9,
    output=sys.argv[1], watchdog=200.0, verify_save=sys.argv[2] == "save", features=sys.argv[1] + "-features",
)
def verify(*_):
    time.sleep(600)
checkpoint.verify_saved = verify
encode = features.FeatureStore.encode
def slow(*arguments):
    if sys.argv[2] == "store":
        impatient()
        if os.environ["RANK"] == "1":
            time.sleep(600)
    return encode(*arguments)
features.FeatureStore.encode = slow
import langdc.train.run as run
build = run.RunModel.of
def built(*arguments):
    global layer
    found = build(*arguments)
    layer = found.model.compressor.captioner.language_model.model.layers[1]
    return found
run.RunModel.of = built
layer = None
register_module_forward_hook(nap)
train(config)
"""


def both_end(*arguments: str) -> list[str]:
    """What two processes of PROGRAM say when the watchdog has ended them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in ("0", "1"):
        here = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PROGRAM, *arguments]
        started.append(subprocess.Popen(command, env=here, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [watchdog.EXIT_CODE] * 2, said
    assert all(f"Watchdog: process {rank} of 2" in text for rank, text in enumerate(said))
    return said


@pytest.mark.slow
def test_when_one_process_sleeps_all_say_where_they_are(tmp_path: Path):
    said = both_end(str(tmp_path / "x"), "step")
    assert all("after step 2" in text for text in said)
    assert "captioner.language_model.model.layers.1.mlp." in said[1] and "in nap" in said[1]
    steps = [json.loads(line)["step"] for line in (tmp_path / "x" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


@pytest.mark.slow
def test_a_save_that_hangs_while_it_is_checked(tmp_path: Path):
    said = both_end(str(tmp_path / "x"), "save")
    assert "x, which a fresh process reads again" in said[0] and "in verify" in said[0]
    assert "It waits for other processes (process 0, last seen at" in said[1]


@pytest.mark.slow
def test_a_hang_while_videos_are_stored(tmp_path: Path):
    """It was an error of the process that waited, after a fixed time."""
    said = both_end(str(tmp_path / "x"), "store")
    assert "in slow" in said[1]
    assert "Encoding videos: waiting for other processes, as for" in said[0] and "process 1, last seen" in said[0]
