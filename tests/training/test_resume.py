"""A run that was killed or stopped goes on as if nothing had been, also on another number of processes.

Captions of 0 to 100 tokens, and text among the videos. Two processes add the same float32 numbers in another order.
"""

import json
import os
import random
import signal
from pathlib import Path

import pytest
from langdc.training import runs, stopping
from tests.training.ranks import assert_close, changed, losses, run, run_until

from langdc.config import StageConfig
from tests.training import ranks

pytestmark = pytest.mark.slow

KILLS = 10
ZERO = {"ddp": None, "zero2": 2, "zero3": 3}


def figures(config: StageConfig) -> dict:
    return json.loads((config.output / runs.FINISHED).read_text())


def assert_same(found: StageConfig, expected: StageConfig) -> None:
    """Every loss and every trained number."""
    assert losses(found) == losses(expected)
    assert figures(found)["hash"] == figures(expected)["hash"]


def killed(count: int, config: StageConfig) -> None:
    """Kill a run ten times, at different random steps, then let it come to its end."""
    total = sum(phase.steps or 0 for phase in config.phases)
    dice = random.Random(f"{config.stage} on {count}")
    for line in sorted(dice.sample(range(2, total - 1), KILLS)):
        run_until(count, config, line)
        assert not runs.is_finished(config.output)
    run(count, config)


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_one_process_killed_ten_times_is_exact(trained: dict[str, StageConfig], tmp_path: Path, stage: str):
    found = changed(trained[stage], tmp_path / "killed")
    killed(1, found)
    assert_same(found, trained[stage])
    assert_close(found, trained[stage], 0)


@pytest.mark.parametrize(("stage", "number"), [("stage2", 2), ("stage2", 3), ("stage3", 2), ("stage3", 3)])
def test_two_processes_killed_ten_times_are_close(
    trained: dict[str, StageConfig], tmp_path: Path, stage: str, number: int
):
    found = changed(trained[stage], tmp_path / "killed", number, batch_size=2)
    killed(2, found)
    assert_close(found, trained[stage], 1e-5)


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
@pytest.mark.parametrize("kind", ZERO)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["2-to-1", "1-to-2"])
def test_another_number_of_processes_goes_on(
    trained: dict[str, StageConfig], tmp_path: Path, stage: str, kind: str, before: int, after: int
):
    """With several groups of parameters, which have rates and weight decays of their own."""
    found = changed(trained[stage], tmp_path / "moved", ZERO[kind], batch_size=4 // before)
    run_until(before, found, 9)
    found = changed(trained[stage], tmp_path / "moved", ZERO[kind], batch_size=4 // after)
    run_until(after, found, 15)
    run(after, found)
    assert_close(found, trained[stage], 1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("count", "zero"), [(1, None), (2, 3)], ids=["one", "two-zero3"])
def test_a_signal_to_one_process_saves_and_stops_all(
    trained: dict[str, StageConfig], tmp_path: Path, number: int, count: int, zero: int | None
):
    """Checkpoints are far apart, so what the run goes on from was saved because of the signal."""
    expected = trained["stage2"]
    found = changed(expected, tmp_path / "stopped", zero, batch_size=4 // count)
    found = found.model_copy(update={"save_steps": 1000})
    codes: list[int | None] = []

    def ask(processes) -> None:
        os.kill(processes[-1].pid, number)
        codes.extend(ranks.finish(processes))

    assert 9 <= run_until(count, found, 9, ask) < 24
    assert codes == [stopping.EXIT_CODE] * count
    last = json.loads((found.output / "log.jsonl").read_text().splitlines()[-1])
    saved = list(found.output.glob(f"resume/*/checkpoint-*/{runs.COMPLETE}"))
    assert [path.parent.name for path in saved] == [f"checkpoint-{last['step']}"]
    run(count, found)
    if count == 1:
        assert_same(found, expected)
    assert_close(found, expected, 1e-5)
