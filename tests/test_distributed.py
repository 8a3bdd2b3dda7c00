"""The processes of a run: threads, what they agree on, and what a process of its own must not inherit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from langdc import distributed

ROOT = Path(__file__).parents[1]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("variable", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"])
def test_cores_are_divided(monkeypatch, threads, variable):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_cores", lambda: 8)
    monkeypatch.setenv(variable, "3")
    assert distributed._set_threads() == 2
    assert torch.get_num_threads() == 2 and os.environ["OMP_NUM_THREADS"] == "2"


def test_more_processes_than_cores_have_a_thread_each(monkeypatch, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(distributed, "_cores", lambda: 2)
    monkeypatch.setenv("LOCAL_SIZE", "5")
    assert distributed._set_threads() == 1


def test_the_users_choice_wins(monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert distributed._set_threads() == 3


def test_alone_nothing_is_shared_or_waited_for():
    assert distributed.broadcast({"a": 1}) == {"a": 1}
    distributed.barrier()


def test_a_process_of_its_own_inherits_nothing_of_the_launcher():
    launcher = dict.fromkeys(distributed.LAUNCHER_VARIABLES, "1")
    assert distributed.without_launcher({**launcher, "PATH": "/bin"}) == {"PATH": "/bin"}


def _second_learns_of(error: type[Exception]) -> None:
    """Two processes; the main one fails alone."""

    def work() -> None:
        raise error("no room")

    distributed.start()
    try:
        distributed.main_process_first(work)
    except error as failure:
        assert str(failure) == "no room"
    else:
        raise AssertionError("nothing was raised")
    assert distributed.broadcast(distributed.rank()) == 0
    distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("error", [ValueError, pytest.param(OSError, marks=pytest.mark.slow)])
def test_all_processes_learn_that_the_main_one_failed(error, tmp_path):
    script = f"from tests.test_distributed import _second_learns_of as run; run({error.__name__})"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, sys.executable, "-c", script], env=here, cwd=tmp_path, check=True)


def test_neither_who_is_who_nor_the_log_needs_torch():
    script = "import sys, langdc.log, langdc.distributed as d; d.broadcast(1); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
