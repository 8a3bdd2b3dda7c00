"""Plans: of full-size configs without weights, of the sample against what its run then takes, and their page."""

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from langdc.cli import main
from langdc.config import StageConfig, load
from langdc.sample.dataset import make_dataset
from langdc.tools import plan as plans
from langdc.tools.plan_page import show
from langdc.training import planning, stages
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
FULL_SIZE = ROOT / "configs/langdc_3b/model.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_dataset(folder, {"train": 10, "test": 0}, images=4, workers=1)
    return folder


def config(data: Path, place: Path, **changes) -> Path:
    """A file with a caption phase and an answer phase, that runs from random weights."""
    common = {"batch_size": 2, "learning_rate": 1e-3}
    caption = {
        **common, "name": "base", "objective": "caption", "epochs": 2, "trainable": ["compressor.*"],
        "data": [str(data / "images.jsonl"), str(data / "train.jsonl")],
    }  # fmt: skip
    answer = {
        **common, "name": "instruct", "objective": "answer", "steps": 4, "questions_per_video": 2,
        "data": [str(data / "train.jsonl")], "trainable": ["compressor.post_projector.*"],
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
    }  # fmt: skip
    tree = {
        "stage": "stage2",
        "model": tiny.config("langdc", segment_marker=True).model_dump(mode="json"),
        "output": str(place / "x"),
        "phases": [caption, answer],
        "log_steps": 1,
        **changes,
    }
    path = place / "stage.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def full_size(place: Path, **changes) -> StageConfig:
    phase = {
        "name": "density", "objective": "caption", "data": ["none.jsonl"], "epochs": 1, "batch_size": 4,
        "trainable": ["compressor.projectors.*", "compressor.captioner.*"], "gradient_accumulation": 2,
    }  # fmt: skip
    tree = {"extends": str(FULL_SIZE), "stage": "stage2", "phases": [{**phase, **changes}], "precision": "bfloat16"}
    (place / "full.yaml").write_text(yaml.safe_dump(tree))
    return load(StageConfig, place / "full.yaml")


def test_a_full_size_config_is_planned_without_weights_or_data(tmp_path):
    (found,) = plans.plan(full_size(tmp_path), gpus=8, memory=80, samples=330_000)
    plan = found.plan
    assert plan["assumed"] and plan["steps"] == 5157  # 330,000 by 4 x 8, then by 2, each rounded up
    assert plan["tokens_per_sample"]["visual"] == 4 * 832 and plan["tokens_per_sample"]["caption"] == 4 * 59
    # Qwen2.5-0.5B has 494 M parameters; two projectors of 1024 and 1408 by 896 by 896 come to 3.8 M
    assert plan["parameters"]["trained"] == pytest.approx(494.0e6 + 3.8e6, rel=0.002)
    assert found.choices[0].layout.zero == 0 and "batch_size=" in found.advice
    sizes = plan["memory"]
    assert sizes["weights"] == pytest.approx(4 * plan["parameters"]["total"] + 2 * plan["parameters"]["trained"])


def test_what_does_not_fit_gets_adapters_advised(tmp_path):
    tuned = {"objective": "answer", "trainable": ["backbone.language_model.*", "compressor.post_projector.*"]}
    (found,) = plans.plan(full_size(tmp_path, **tuned), gpus=1, memory=24, samples=1000)
    assert all(choice.layout.offload for choice in found.choices), "16 bytes a parameter of 3 B need more than 24 GiB"
    (none,) = plans.plan(full_size(tmp_path, **tuned), gpus=1, memory=1, samples=1000)
    assert none.choices == [] and "nothing fits" in none.advice


def test_directories_that_are_absent_are_taken_by_their_names(tmp_path):
    config = full_size(tmp_path)
    backbone = config.model.backbone.model_copy(
        update={"language_model": "weights/Qwen2.5-1.5B-Instruct", "tokenizer": None}
    )
    sizes, notes = plans.sized(config.model.model_copy(update={"backbone": backbone}))
    assert sizes.backbone.settings["language_model"]["config"]["hidden_size"] == 1536
    assert len(notes) == 1 and "weights/Qwen2.5-1.5B-Instruct" in notes[0]
    backbone = config.model.backbone.model_copy(update={"language_model": "weights/unheard-of"})
    with pytest.raises(ValueError, match="no checkpoint directory"):
        plans.sized(config.model.model_copy(update={"backbone": backbone}))


def test_a_run_keeps_its_plan_and_says_how_wrong_it_was(data, tmp_path):
    path = config(data, tmp_path)
    planned = {each.plan["name"]: each.plan for each in plans.plan(load(StageConfig, path))}
    directory = stages.run_stage(load(StageConfig, path))
    kept = json.loads((directory / planning.PLAN).read_text())["phases"]
    for name, plan in planned.items():
        assert kept[name]["tokens_per_sample"] == plan["tokens_per_sample"], "of the real model and of the one on meta"
        assert kept[name]["memory"] == plan["memory"] and kept[name]["steps"] == plan["steps"]
    reviewed = json.loads((directory / "finished.json").read_text())["plan"]
    assert [reviewed[name]["steps"]["error"] for name in planned] == [0, 0]
    assert planned["base"]["steps"] == 14
    # every record is seen in whole epochs, so the count is exact up to the rounding of the log's means
    assert abs(reviewed["base"]["tokens_per_sample"]["error"]) < 0.12  # steps weigh alike, whatever their samples
    assert abs(reviewed["instruct"]["tokens_per_sample"]["error"]) < 0.1
    assert reviewed["base"]["seconds"] == {
        "predicted": None, "measured": reviewed["base"]["seconds"]["measured"], "error": None
    }  # fmt: skip
    assert abs(reviewed["base"]["peak_bytes"]["error"]) < 0.5


def test_a_probe_runs_real_steps_and_leaves_nothing_but_its_figures(data, tmp_path):
    settings = load(StageConfig, config(data, tmp_path))
    found = plans.probe(settings, steps=4)
    assert set(found["seconds_per_step"]) == {"base", "instruct"}
    assert all(0 < seconds < 60 for seconds in found["seconds_per_step"].values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage.yaml", "x.probe.json"]
    planned = plans.plan(settings)
    assert planned[0].plan["seconds"] == pytest.approx(14 * found["seconds_per_step"]["base"], abs=0.1)


def test_the_command_prints_every_phase(data, tmp_path, capsys):
    assert main(["plan", str(config(data, tmp_path)), "phases.base.batch_size=4", "--gpus", "2", "--memory", "8"]) == 0
    said = capsys.readouterr().out
    assert "base" in said and "instruct" in said and "--probe" in said and "ZeRO-2" in said
    assert main(["plan", str(config(data, tmp_path)), "--gpus", "0"]) == 2
    assert "at least 1 device" in capsys.readouterr().err


def test_the_page_says_what_is_not_known(tmp_path):
    console = Console(width=200, record=True)
    show(console, plans.plan(full_size(tmp_path)), gpus=1)
    said = console.export_text()
    assert "assumed" in said and "?" in said and "density" in said
