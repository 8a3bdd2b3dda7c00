"""The real launcher, two processes, ZeRO-2 and ZeRO-3: the same losses as one process, also after a kill."""

import os
import socket
from pathlib import Path

import pytest

from langdc.training import runs
from tests.training import toy
from tests.training.kill import losses, run, run_until

ROOT = Path(__file__).parents[2]
STEPS = 14


def launcher(*command) -> list:
    """A command under `deepspeed --num_accelerators 2`, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ["-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", str(port), *command]


def environment() -> dict[str, str]:
    """No accelerator, a thread per process, and the tests' own modules."""
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_two_processes_killed_and_started_again_equal_one(tmp_path, zero):
    toy.train(toy.settings(tmp_path / "one", {"steps": STEPS, "batch_size": 4}), dropout=0.0)
    common = [tmp_path / "two", f"steps={STEPS}", "batch_size=2", "--dropout", "0.0"]
    command = [toy.__file__, *common, "--deepspeed", ROOT / f"configs/deepspeed/zero{zero}.json"]
    options = {"cwd": ROOT, "env": environment()}
    log = tmp_path / "two" / "log.jsonl"
    last = run_until(launcher(*command, "--slow", "0.1"), log, 6, **options)
    assert 6 <= last < STEPS and not runs.is_finished(tmp_path / "two")
    run(launcher(*command), **options)
    found, expected = losses(log), losses(tmp_path / "one" / "log.jsonl")
    assert list(found) == list(range(1, STEPS + 1))
    assert found == pytest.approx(expected, abs=1e-4)
