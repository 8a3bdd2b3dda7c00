"""A run that was killed or stopped is resumed exactly, also on another number of processes.

Captions of 0 to 100 tokens, and text among the videos. Two processes add the same float32 numbers in another order.
"""

import json
import os
import random
import signal
from pathlib import Path

import pytest

from langdc import jsonl
from langdc.config import RunConfig
from langdc.train import output, stopping
from tests.train import ranks
from tests.train.ranks import assert_close, changed, losses, run, run_until

pytestmark = pytest.mark.slow

Recipes = dict[str, list[RunConfig]]
KILLS = 4
ZERO = {"ddp": None, "zero2": 2, "zero3": 3}
LONGEST = {"stage2": "density", "stage3": "instruct", "distill": "instruct"}
"""The run of each recipe that is interrupted; those before it are made in one go."""


def interrupted(chain: list[RunConfig], name: str) -> tuple[list[RunConfig], RunConfig, list[RunConfig]]:
    """The runs before, at and after the one that is interrupted."""
    at = next(number for number, config in enumerate(chain) if config.output.name == LONGEST[name])
    return chain[:at], chain[at], chain[at + 1 :]


def assert_same(found: list[RunConfig], expected: list[RunConfig]) -> None:
    """Every loss and every trained number."""
    assert losses(found) == losses(expected)
    figures = [[json.loads((c.output / output.FINISHED).read_text()) for c in chain] for chain in (found, expected)]
    assert [each["hash"] for each in figures[0]] == [each["hash"] for each in figures[1]]


def killed(count: int, chain: list[RunConfig], name: str) -> None:
    """Kill a run several times, at different random steps, then let it come to its end."""
    before, config, after = interrupted(chain, name)
    run(count, *before)
    rng = random.Random(f"{name} on {count}")
    for line in sorted(rng.sample(range(2, (config.train.steps or 0) - 1), KILLS)):
        run_until(count, config, line)
        assert not output.is_finished(config.output)
    run(count, config, *after)


@pytest.mark.parametrize("name", LONGEST)
def test_one_process_killed_is_exact(trained: Recipes, tmp_path: Path, name: str):
    found = changed(trained[name], tmp_path / "killed")
    killed(1, found, name)
    assert_same(found, trained[name])
    assert_close(found, trained[name], 0)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", LONGEST)
def test_two_processes_killed_are_close(trained: Recipes, tmp_path: Path, name: str, number: int):
    found = changed(trained[name], tmp_path / "killed", number, batch_size=2)
    killed(2, found, name)
    assert_close(found, trained[name], 1e-5)


@pytest.mark.parametrize("name", LONGEST)
@pytest.mark.parametrize("kind", ZERO)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["2-to-1", "1-to-2"])
def test_another_number_of_processes_resumes(
    trained: Recipes, tmp_path: Path, name: str, kind: str, before: int, after: int
):
    """With several groups of parameters, which have rates and weight decays of their own."""
    earlier, config, later = interrupted(
        changed(trained[name], tmp_path / "moved", ZERO[kind], batch_size=4 // before), name
    )
    run(before, *earlier)
    run_until(before, config, 5)
    moved = changed(trained[name], tmp_path / "moved", ZERO[kind], batch_size=4 // after)
    earlier, config, later = interrupted(moved, name)
    run_until(after, config, 7)
    run(after, config, *later)
    assert_close(moved, trained[name], 1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("count", "zero"), [(1, None), (2, 3)], ids=["one", "two-zero3"])
def test_a_signal_to_one_process_saves_and_stops_all(
    trained: Recipes, tmp_path: Path, number: int, count: int, zero: int | None
):
    """Checkpoints are far apart, so what the run is resumed from was saved because of the signal."""
    chain = changed(trained["stage3"], tmp_path / "stopped", zero, batch_size=4 // count)
    found = [config.model_copy(update={"save_steps": 1000}) for config in chain]
    codes: list[int | None] = []

    def ask(processes) -> None:
        os.kill(processes[-1].pid, number)
        codes.extend(ranks.finish(processes))

    assert 3 <= run_until(count, found[0], 3, ask) < 12
    assert codes == [stopping.EXIT_CODE] * count
    last = jsonl.read(found[0].output / output.LOG)[-1]
    saved = list(found[0].output.glob(f"resume/checkpoint-*/{output.COMPLETE}"))
    assert [path.parent.name for path in saved] == [f"checkpoint-{last['step']}"]
    run(count, *found)
    if count == 1:
        assert_same(found, trained["stage3"])
    assert_close(found, trained["stage3"], 1e-5)
