"""Seconds per stage reach whoever listens, each once."""

from collections.abc import Callable

import pytest
import torch

from langdc import timing
from langdc.timing import StageTimer, note, stage

Wait = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Moves a clock of its own on, which the stages read."""
    now = [100.0]

    def moved(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return moved


def test_a_stage_inside_another_counts_once(wait: Wait):
    with StageTimer("cpu") as timer:
        with stage("encode"):
            wait(1)
            with stage("preprocess"):
                wait(5)
            wait(2)
        with stage("encode"):
            wait(4)
    assert timer.seconds == {"preprocess": 5, "encode": 7}
    assert list(timer.seconds) == ["preprocess", "encode"]


def test_all_who_listen_hear_it_until_they_leave(wait: Wait):
    with StageTimer("cpu") as outer:
        with StageTimer("cpu") as inner, stage("decode"):
            wait(3)
        note("prefill", 2)
    with stage("decode"):
        wait(8)
    assert inner.seconds == {"decode": 3}
    assert outer.seconds == {"decode": 3, "prefill": 2}


def test_what_is_noted_inside_a_stage_is_taken_off_it(wait: Wait):
    with StageTimer("cpu") as timer, stage("encode"):
        wait(5)
        note("saliency", 2)
    assert timer.seconds == {"saliency": 2, "encode": 3}


def test_a_stage_that_fails_counts(wait: Wait):
    with StageTimer("cpu") as timer:
        with pytest.raises(ValueError, match="broken"), stage("encode"):
            wait(1)
            raise ValueError("broken")
        with stage("encode"):
            wait(2)
    assert timer.seconds == {"encode": 3}


@pytest.mark.gpu
def test_a_stage_waits_for_the_accelerator():
    big = torch.randn(8192, 8192, device="cuda")
    big @ big
    with StageTimer("cuda") as timer, stage("product"):
        for _ in range(10):
            big = big @ big
    assert timer.seconds["product"] > 0.01
