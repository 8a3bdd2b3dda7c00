"""Threads are shared among the processes of a machine."""

import os

import pytest
import torch

from langdc.training import processes


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("variable", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"])
def test_cores_are_divided(monkeypatch, threads, variable):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "_cores", lambda: 8)
    monkeypatch.setenv(variable, "3")
    assert processes.set_threads() == 2
    assert torch.get_num_threads() == 2 and os.environ["OMP_NUM_THREADS"] == "2"


def test_more_processes_than_cores_have_a_thread_each(monkeypatch, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes, "_cores", lambda: 2)
    monkeypatch.setenv("LOCAL_SIZE", "5")
    assert processes.set_threads() == 1


def test_the_users_choice_wins(monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processes.set_threads() == 3


def test_alone_nothing_is_shared_or_waited_for():
    assert processes.share({"a": 1}) == {"a": 1}
    processes.wait()
