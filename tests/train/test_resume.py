"""A run that was killed or stopped is resumed as if nothing had been, also on another number of processes.

Captions of 0 to 100 tokens, and text among the videos. Two processes add the same float32 numbers in another order.
"""

import json
import os
import random
import signal
from pathlib import Path

import pytest

from langdc.config import DataConfig, RunConfig
from langdc.train import output, stopping
from tests.train import ranks
from tests.train.ranks import assert_close, changed, losses, run, run_until

pytestmark = pytest.mark.slow

KILLS = 2
ZERO = {"ddp": None, "zero2": 2, "zero3": 3}
LAST = {"stage2": "density", "stage3": "instruct", "distill": "instruct"}
Recipes = dict[str, list[RunConfig]]


def figures(config: RunConfig) -> dict:
    return json.loads((config.output / output.FINISHED).read_text())


def chosen(trained: Recipes, stage: str, place: Path, zero: int | None = None, **train: object) -> RunConfig:
    """The run of a recipe that has most steps, elsewhere; it starts from what one process made."""
    expected = next(config for config in trained[stage] if config.output.name == LAST[stage])
    (found,) = changed([expected], place, zero, **train)
    return found.model_copy(update={"start": expected.start})


def expected(trained: Recipes, stage: str) -> RunConfig:
    return next(config for config in trained[stage] if config.output.name == LAST[stage])


def killed(count: int, config: RunConfig) -> None:
    """Kill a run at different random steps, then let it come to its end."""
    total = config.train.steps or 0
    rng = random.Random(f"{config.output.name} on {count}")
    for line in sorted(rng.sample(range(2, total - 1), KILLS)):
        run_until(count, config, line)
        assert not (config.output / output.FINISHED).exists()
    run(count, config)


@pytest.mark.parametrize("stage", LAST)
def test_one_process_killed_again_and_again_is_exact(trained: Recipes, tmp_path: Path, stage: str):
    found, wanted = chosen(trained, stage, tmp_path / "killed"), expected(trained, stage)
    killed(1, found)
    assert losses([found]) == losses([wanted])
    assert figures(found)["hash"] == figures(wanted)["hash"]
    assert_close([found], [wanted], 0)


def test_two_processes_killed_again_and_again_are_close(trained: Recipes, tmp_path: Path):
    """The captioner under ZeRO-3; stage 3 under both is in test_deepspeed.py, with the real launcher."""
    found = chosen(trained, "stage2", tmp_path / "killed", 3, batch_size=2)
    killed(2, found)
    assert_close([found], [expected(trained, "stage2")], 1e-5)


@pytest.mark.parametrize(
    ("kind", "before", "after"), [("ddp", 1, 2), ("zero2", 2, 1), ("zero3", 2, 1), ("zero3", 1, 2)]
)
def test_another_number_of_processes_resumes(trained: Recipes, tmp_path: Path, kind: str, before: int, after: int):
    """With several groups of parameters, which have rates and weight decays of their own."""
    place = tmp_path / "moved"
    run_until(before, chosen(trained, "stage3", place, ZERO[kind], batch_size=4 // before), 5)
    found = chosen(trained, "stage3", place, ZERO[kind], batch_size=4 // after)
    run_until(after, found, 9)
    run(after, found)
    assert_close([found], [expected(trained, "stage3")], 1e-5)


@pytest.mark.parametrize(
    ("number", "count", "zero"),
    [(signal.SIGTERM, 1, None), (signal.SIGINT, 2, 3)],
    ids=["term-one", "int-two-zero3"],
)
def test_a_signal_to_one_process_saves_and_stops_all(
    trained: Recipes, tmp_path: Path, number: int, count: int, zero: int | None
):
    """Checkpoints are far apart, so what the run is resumed from was saved because of the signal."""
    wanted = expected(trained, "stage3")
    found = chosen(trained, "stage3", tmp_path / "stopped", zero, batch_size=4 // count)
    found = found.model_copy(update={"save_steps": 1000})
    codes: list[int | None] = []

    def ask(processes) -> None:
        os.kill(processes[-1].pid, number)
        codes.extend(ranks.finish(processes))

    assert 4 <= run_until(count, found, 4, ask) < 12
    assert codes == [stopping.EXIT_CODE] * count
    last = json.loads((found.output / "log.jsonl").read_text().splitlines()[-1])
    saved = list(found.output.glob(f"resume/checkpoint-*/{output.COMPLETE}"))
    assert [path.parent.name for path in saved] == [f"checkpoint-{last['step']}"]
    run(count, found)
    assert_close([found], [wanted], 0 if count == 1 else 1e-5)


def test_mixed_grouped_packed_and_streamed_data_is_the_same_on_two_processes(varied: Path, tmp_path: Path):
    """Killed and resumed on two."""
    (base,) = ranks.recipe("stage3", varied, tmp_path / "base")
    shares = [DataConfig(path=varied / f"{name}.jsonl", weight=weight) for name, weight in (("train", 2), ("text", 1))]
    more = {"data": shares, "streaming": True, "group_by_length": True, "packing": True}
    (one,) = changed([base], tmp_path / "one", **more)
    (two,) = changed([base], tmp_path / "two", batch_size=2, **more)
    run(1, one)
    run_until(2, two, 5)
    run(2, two)
    assert_close([two], [one], 1e-5)
