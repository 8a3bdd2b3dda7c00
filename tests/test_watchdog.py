"""A hang is told by every process, with its rank and where it is, and ends."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from langdc.train import watchdog
from langdc.train.watchdog import Watchdog

ROOT = Path(__file__).parents[2]


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
def watched(monkeypatch):
    monkeypatch.setattr(watchdog, "REPORT_SECONDS", 0.05)
    model = nn.Sequential(nn.Linear(2, 2), Part())
    codes: list[int] = []
    dog = Watchdog(model, 0.4, leave=codes.append)
    begin = SimpleNamespace(global_step=6)
    dog.on_train_begin(None, begin, None)  # pyright: ignore[reportArgumentType]
    yield model, dog, codes
    dog.close()


def test_a_step_that_takes_too_long_is_told_and_ended(watched, capfd):
    model, _, codes = watched
    model[1].nap = 1.5
    model(torch.zeros(1, 2))
    said = capfd.readouterr().err
    assert codes == [watchdog.EXIT_CODE]
    assert "process 0 of 1" in said and "after step 6" in said and "Module entered last: 1.inner." in said
    assert "in forward" in said, "the stack"


def test_steps_that_end_in_time_keep_it_quiet(watched, capfd):
    model, dog, codes = watched
    model[1].nap = 0.25
    for step in range(7, 11):
        model(torch.zeros(1, 2))
        dog.on_step_end(None, SimpleNamespace(global_step=step), None)
    dog.close()
    assert not codes and not capfd.readouterr().err
    assert not any(part._forward_pre_hooks for part in model.modules())
    time.sleep(0.8)
    assert not codes


def test_before_any_module_it_says_what_it_waits_for(watched, capfd):
    _, _, codes = watched
    time.sleep(1.2)
    assert codes and "waits for data or another process" in capfd.readouterr().err


PROGRAM = """
import os, sys, time
from pathlib import Path
from torch.nn.modules.module import register_module_forward_hook
from langdc.train.run import train
from tests.train import small
calls = 0
def nap(module, *_):
    global calls
    if module is layer:
        calls += 1
        if os.environ["RANK"] == "1" and calls == 3:
            time.sleep(600)
config = small.run_config(
    small.langdc(), "images", objective="compress", trainable=["compressor.projectors.*"], batch_size=1, steps=9,
    output=sys.argv[1], watchdog=6.0,
)
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


@pytest.mark.slow
def test_when_one_process_sleeps_all_say_where_they_are(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in ("0", "1"):
        here = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x")]
        started.append(subprocess.Popen(command, env=here, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [watchdog.EXIT_CODE] * 2, said
    for rank, text in enumerate(said):
        assert f"Watchdog: process {rank} of 2" in text and "after step 2" in text
    assert "captioner.language_model.model.layers.1.mlp." in said[1] and "in nap" in said[1]
    steps = [json.loads(line)["step"] for line in (tmp_path / "x" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
