"""Two processes learn what one does, under ZeRO-2, ZeRO-3 or neither, in every recipe, and none waits without end.

Captions of 0 to 100 tokens, and text among the videos: each process sees other lengths, and some see no video at all.
"""

import json
from pathlib import Path

import pytest

from langdc import jsonl
from langdc.config import RunConfig
from tests.train.ranks import RECIPES, assert_close, changed, recipe, run

Recipes = dict[str, list[RunConfig]]
ZERO = {"ddp": None, "zero2": 2, "zero3": 3}


@pytest.fixture(scope="module")
def short(varied: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipes:
    """Two steps of every run, by one process."""
    folder = tmp_path_factory.mktemp("short")
    configs = {name: changed(recipe(name, varied, folder), folder / name, steps=2) for name in RECIPES}
    run(1, *(config for chain in configs.values() for config in chain))
    return configs


@pytest.mark.first
def test_two_processes_learn_what_one_does_for_two_steps(short: Recipes, tmp_path: Path):
    """All recipes in one start; captions are written while the captioner learns, and before runs that read them."""
    found = {name: changed(chain, tmp_path / name, 3, batch_size=2) for name, chain in short.items()}
    run(2, *(config for chain in found.values() for config in chain))
    for name, expected in short.items():
        assert_close(found[name], expected, 1e-4)


def test_captions_differ_as_much_as_they_should(varied: Path):
    lines = [json.loads(line) for line in (varied / "train.jsonl").read_text().splitlines()]
    words = [len(segment["caption"].split()) for line in lines for segment in line["segments"]]
    assert min(words) == 0 and max(words) == 100


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ZERO)
def test_two_processes_learn_what_one_does(trained: Recipes, tmp_path: Path, name: str, kind: str):
    found = changed(trained[name], tmp_path / "two", ZERO[kind], batch_size=2)
    run(2, *found)
    assert_close(found, trained[name], 1e-4)
    written = [line["step"] for config in found for line in jsonl.read(config.output / "captions.jsonl")]
    assert written == ([6, 9, 10] if name == "stage2" else [])


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_captions_of_the_captioner_and_checkpointing(trained: Recipes, tmp_path: Path, number: int):
    """The captioner writes the captions that stage 3 learns with; the forward pass is repeated in the backward."""
    expected = changed(trained["stage3"], tmp_path / "one", targets="none", steps=6)
    run(1, *expected)
    found = changed(expected, tmp_path / "two", number, batch_size=2)
    run(2, *(config.model_copy(update={"gradient_checkpointing": True}) for config in found))
    assert_close(found, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_accumulated_steps(trained: Recipes, tmp_path: Path, number: int):
    """Each process learns one sample at a time, so some have text alone in one part of a step and not in the other."""
    found = changed(trained["stage3"], tmp_path / "two", number, batch_size=1, gradient_accumulation=2)
    run(2, *found)
    assert_close(found, trained["stage3"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [*((name, 3) for name in RECIPES), ("stage2", None)])
def test_two_processes_that_encode_in_the_step_learn_the_same(short: Recipes, tmp_path: Path, name: str, number: int):
    """One has a batch of images where the other has videos, or text alone; each writes captions of its own length."""
    chain = [config for config in short[name] if config.output.name not in ("align", "post", "both")]
    kept, online = (
        [config.model_copy(update={"features_dtype": "float32", "feature_memory": memory}) for config in chain]
        for memory in (16.0, 0.0)
    )
    expected = changed(kept, tmp_path / "one", steps=2)
    found = changed(online, tmp_path / "two", number, batch_size=2, steps=2)
    run(1, *expected)
    run(2, *found)
    assert_close(found, expected, 1e-4)
