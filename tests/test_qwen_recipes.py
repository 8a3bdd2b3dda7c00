"""Recipes of every method on Qwen2.5-VL and Qwen3-VL: they load and fit together, and run on tiny models."""

import inspect
from pathlib import Path

import pytest

from langdc.backbones import backbones
from langdc.compressors import compressors
from langdc.config import RunConfig, load
from langdc.configfiles import SHIPPED
from langdc.registry import check_keywords
from langdc.sample.dataset import make_dataset
from langdc.train import chain, output
from langdc.train.run import train

FULL, TINY = ("qwen2_5_vl_7b", "qwen3_vl_8b"), ("tiny/qwen2_5_vl", "tiny/qwen3_vl")
CHAINS = {
    "resampler": ["stage1", "lora"],
    "selector": ["distill", "lora"],
    "langdc": ["stage1", "stage2a", "stage2b", "stage2c", "lora"],
}
RUNS = ["vidcom2_lora", *(f"{method}/{name}" for method, names in CHAINS.items() for name in names)]
QLORA = ["vidcom2_qlora", *(f"{method}/qlora" for method in CHAINS)]
FILLED_IN = {"width": 64, "streams": {"video": 64}}  # by the backbone


@pytest.mark.parametrize("folder", [*FULL, *TINY])
def test_recipes_load_and_ask_for_settings_that_exist(folder: str):
    found = {str(path.relative_to(SHIPPED / folder).with_suffix("")) for path in (SHIPPED / folder).rglob("*.yaml")}
    names = RUNS + (QLORA if folder in FULL else [])
    assert found - {"model", "langdc/model"} - {f"{method}/chain" for method in CHAINS} == set(names)
    for name in names:
        config = load(RunConfig, f"{folder}/{name}")
        backbone, compressor = config.model.backbone, config.model.compressor
        check_keywords("backbone", backbones.get(backbone.name), backbone.settings)
        maker = compressors.get(compressor.name)
        filled = {name: value for name, value in FILLED_IN.items() if name in inspect.signature(maker).parameters}
        check_keywords("compressor", maker, {**filled, **compressor.settings})
        assert config.output == Path("runs", folder, name)
        assert config.train.lora is not None or config.train.trainable
        assert (backbone.settings.get("quantize") == "nf4") == ("qlora" in name)
        if "qlora" in name:
            usual = load(RunConfig, f"{folder}/{name.replace('qlora', 'lora')}")
            assert config.start == usual.start and config.train.data == usual.train.data and config.deepspeed is None


@pytest.mark.parametrize("folder", [*FULL, *TINY])
@pytest.mark.parametrize("method", CHAINS)
def test_the_runs_of_a_method_follow_one_another(folder: str, method: str):
    links = chain.read([f"{folder}/{method}"])
    assert [Path(link.name).stem for link in links] == CHAINS[method]
    assert [link.config.start for link in links] == [None, *(link.config.output for link in links[:-1])]


def test_heads_say_what_they_must():
    for name in RUNS:
        text = (SHIPPED / f"qwen2_5_vl_7b/{name}.yaml").read_text()
        for wanted in ("# Data: ", "# GPUs: ", "Published score", "ours"):
            assert wanted in text, (name, wanted)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    make_dataset(folder / "data/sample", {"train": 4, "test": 0}, images=4, workers=1)
    return folder


def run(names: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    links = chain.read(names, ["train.steps=2"])
    directory = chain.run(links, train)
    assert (directory / output.FINISHED).is_file() and all(link.finished for link in links)


@pytest.mark.slow
def test_a_tiny_recipe_runs(place: Path, monkeypatch: pytest.MonkeyPatch):
    run(["tiny/qwen2_5_vl/selector"], place, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "method"), [*((TINY[0], method) for method in ("vidcom2_lora", *CHAINS)), (TINY[1], "langdc")]
)
def test_every_tiny_recipe_runs(place: Path, monkeypatch: pytest.MonkeyPatch, folder: str, method: str):
    run([f"{folder}/{method}"], place, monkeypatch)
