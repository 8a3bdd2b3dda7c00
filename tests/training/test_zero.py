"""Two processes learn what one does, under ZeRO-2, ZeRO-3 or neither, in every stage, and none waits for ever.

Captions of 0 to 100 tokens, and text among the videos: each process sees other lengths, and some see no video at all.
"""

import json
from pathlib import Path

import pytest

from langdc import config as settings
from langdc import jsonl
from langdc.config import StageConfig
from tests.training import kill
from tests.training.ranks import ROOT, STAGES, assert_close, changed, recipe, run
from tests.training.test_deepspeed import environment, launched

ZERO = {"ddp": None, "zero2": 2, "zero3": 3}


@pytest.fixture(scope="module")
def short(varied: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageConfig]:
    """Two steps of every phase, by one process."""
    folder = tmp_path_factory.mktemp("short")
    configs = {name: changed(recipe(name, varied, folder), folder / name, steps=2) for name in STAGES}
    run(1, *configs.values())
    return configs


@pytest.mark.parametrize("number", [2, 3])
def test_two_processes_learn_what_one_does_for_two_steps(short: dict[str, StageConfig], tmp_path: Path, number: int):
    """All stages in one start; captions are written while the captioner learns, and before phases that read them."""
    found = {name: changed(config, tmp_path / name, number, batch_size=2) for name, config in short.items()}
    found["stage3"] = found["stage3"].model_copy(update={"verify_save": number == 3})
    run(2, *found.values())
    for name, expected in short.items():
        assert_close(found[name], expected, 1e-4)


def test_the_launcher_starts_them_too(short: dict[str, StageConfig], tmp_path: Path):
    found = changed(short["stage1_backbone"], tmp_path / "two", 2, batch_size=2)
    settings.save(found, tmp_path / "config.yaml")
    command = launched(2, [ROOT / "train" / "stage1.py", "--config", tmp_path / "config.yaml"])
    assert f"-> {found.output}" in kill.run(command, env=environment())
    assert_close(found, short["stage1_backbone"], 1e-4)


def test_captions_differ_as_much_as_they_should(varied: Path):
    lines = [json.loads(line) for line in (varied / "train.jsonl").read_text().splitlines()]
    words = [len(segment["caption"].split()) for line in lines for segment in line["segments"]]
    assert min(words) == 0 and max(words) == 100


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ZERO)
def test_two_processes_learn_what_one_does(trained: dict[str, StageConfig], tmp_path: Path, stage: str, kind: str):
    found = changed(trained[stage], tmp_path / "two", ZERO[kind], batch_size=2)
    run(2, found)
    assert_close(found, trained[stage], 1e-4)
    looks = jsonl.read(found.output / "captions.jsonl")
    assert [(look["phase"], look["step"]) for look in looks] == (
        [("base", 6), ("density", 9), ("density", 10)] if stage == "stage2" else []
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_captions_of_the_captioner_and_checkpointing(trained: dict[str, StageConfig], tmp_path: Path, number: int):
    """The captioner writes the captions that stage 3 learns with; the forward pass is made again in the backward."""
    expected = changed(trained["stage3"], tmp_path / "one", captions="captioner", steps=6)
    run(1, expected)
    found = changed(expected, tmp_path / "two", number, batch_size=2)
    found = found.model_copy(update={"gradient_checkpointing": True})
    run(2, found)
    assert_close(found, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_accumulated_steps(trained: dict[str, StageConfig], tmp_path: Path, number: int):
    """Each process learns one sample at a time, so some have text alone in one part of a step and not in the other."""
    found = changed(trained["stage3"], tmp_path / "two", number, batch_size=1, gradient_accumulation=2)
    run(2, found)
    assert_close(found, trained["stage3"], 1e-4)
