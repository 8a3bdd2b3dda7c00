"""Times and operations are summed as they should be."""

import math
from pathlib import Path

import pytest

from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.results import Result


def _result(*lines: dict) -> Result:
    return Result("entry", {}, {}, list(lines))


def _timing(warm: bool, **seconds: float) -> dict:
    return {"type": "timing", "warm": warm, "seconds": seconds}


def test_medians_and_tails_of_warm_stages_and_sums():
    parts = [(9, 9, 9, 9, 9), (1, 2, 0, 3, 50), (2, 2, 1, 1, 60), (0, 0, 0, 40, 70)]
    stages = ("decode", "encode", "compress", "prefill", "generate")
    lines = [_timing(n > 0, **dict(zip(stages, part, strict=True))) for n, part in enumerate(parts)]
    found = _result(*lines).stages
    medians = {"decode": 1, "encode": 2, "compress": 0, "prefill": 3, "generate": 60}
    sums = {"first_token": 6, "total": 66, "without_llm": 3}  # of 6 6 40, 56 66 110, 3 5 0
    assert {stage: spread.median for stage, spread in found.items()} == {**medians, **sums}
    # the 95th of three, 1.9 steps from the lowest: nine tenths of the way from the middle one to the highest
    assert found["prefill"].p95 == pytest.approx(3 + 0.9 * 37)
    assert found["first_token"].p95 == pytest.approx(6 + 0.9 * 34)
    assert (found["compress"].median, found["compress"].p95, found["compress"].n) == (0, pytest.approx(0.9), 3)
    assert _result(lines[0]).stages == {}


def test_a_stage_that_only_some_videos_have_counts_as_nothing_elsewhere():
    found = _result(_timing(True, decode=1.0, preprocess=4.0), _timing(True, decode=1.0)).stages
    assert (found["preprocess"].median, found["first_token"].median) == (2.0, 3.0)


def test_tokens_per_second_are_those_after_the_first():
    def reply(warm: bool, tokens: int | None, generate: float) -> dict:
        return {**_timing(warm, prefill=9.0, generate=generate), "reply_tokens": tokens}

    lines = [reply(False, 101, 0.1), reply(True, 11, 2.0), reply(True, 41, 4.0), reply(True, 4, 0.1)]
    assert _result(*lines).tokens_per_second == 10.0  # of 5, 10 and 30
    assert _result(*lines, reply(True, 1, 1.0), reply(True, None, 1.0)).tokens_per_second == 10.0
    assert math.isnan(_result(_timing(True, generate=1.0)).tokens_per_second)


def test_mean_operations_leave_failures_out():
    flops = [{"encode": 2.0, "prefill": 4.0}, None, {"encode": 4.0, "prefill": 8.0}]
    lines = [{"type": "answer", "flops": one} for one in flops]
    assert _result(*lines).flops == {"encode": 3.0, "prefill": 6.0, "total": 9.0}
    assert _result(lines[1]).flops == {}


def test_what_the_loop_takes_itself_is_what_no_stage_accounts_for(tmp_path: Path) -> None:
    one = {"seconds": 10.0, "stages": {"decode": 2.0, "prefill": 7.5}, "videos": 4, "decoded": 4}
    two = {"seconds": 10.0, "stages": {"prefill": 9.5}, "videos": 3, "decoded": 5}
    folder = EvalFolder(tmp_path, {})
    assert folder.loop_cost() == ""
    folder.file("sessions").append([{"type": "session", "key": "1", **one}, {"type": "session", "key": "2", **two}])
    found = folder.loop_cost()
    assert "7 videos were decoded and encoded 9 times in all" in found
    assert "the loop spent 5.0 % of 20.0 s outside" in found
