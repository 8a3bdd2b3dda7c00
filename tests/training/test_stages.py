"""Stages: phases in one directory, a kill between or inside them changes nothing, errors fit on a screen."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from langdc import checkpoint
from langdc.config import StageConfig, check
from langdc.hashing import tensors_hash
from langdc.sample.dataset import make_dataset
from langdc.training import runs, stages, stopping
from langdc.train.progress import read_log
from tests import tiny
from tests.training.kill import fork_until, losses
from tests.training.test_deepspeed import ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_dataset(folder, {"train": 6, "test": 0}, images=8, workers=1)
    return folder


@pytest.fixture
def config(data, tmp_path) -> StageConfig:
    """A caption phase on images, then an answer phase on videos with an adapter."""
    common = {"steps": 5, "batch_size": 2, "learning_rate": 1e-3}
    caption = {
        **common,
        "name": "base",
        "objective": "caption",
        "data": [str(data / "images.jsonl")],
        "trainable": ["compressor.projectors.*"],
    }
    answer = {
        **common,
        "name": "instruct",
        "objective": "answer",
        "data": [str(data / "train.jsonl")],
        "trainable": ["compressor.post_projector.*"],
        "questions_per_video": 2,
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
    }
    model = tiny.config("langdc", segment_marker=True).model_dump(mode="json")
    tree = {"stage": "stage2", "model": model, "output": str(tmp_path / "x"), "phases": [caption, answer]}
    return check(StageConfig, {**tree, "log_steps": 1, "save_steps": 2}, "test")


def test_a_stage_leaves_a_checkpoint_and_its_figures(config):
    directory = stages.run_stage(config)
    figures = json.loads((directory / runs.FINISHED).read_text())
    assert figures["steps"] == 10 and list(figures["phases"]) == ["base", "instruct"]
    assert figures["samples"] == sum(phase["samples"] for phase in figures["phases"].values())
    assert [(line["phase"], line["step"]) for line in read_log(directory / "log.jsonl")] == [
        (phase, step) for phase in ("base", "instruct") for step in range(1, 6)
    ]
    model = checkpoint.load(directory)
    parameters = dict(model.named_parameters())
    saved = load_file(directory / checkpoint.WEIGHTS)
    assert tensors_hash(saved) == figures["hash"]
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in saved.items())
    assert {"compressor.projectors", "compressor.post_projector"} <= {".".join(name.split(".")[:2]) for name in saved}
    assert any(tensor.any() for name, tensor in parameters.items() if "lora_B" in name)
    assert stages.run_stage(config).name == "x-2"


@pytest.mark.parametrize(("phase", "step"), [("base", 3), ("instruct", 3)])
def test_a_kill_in_any_phase_changes_nothing(config, tmp_path, phase, step):
    config = config.model_copy(update={"verify_save": False})  # the process that is killed would start one more
    whole = stages.run_stage(config.model_copy(update={"output": tmp_path / "whole"}))
    log = tmp_path / "x" / "log.jsonl"
    fork_until(lambda: any(line["step"] >= step for line in read_log(log, phase)), stages.run_stage, config)
    directory = stages.run_stage(config)
    assert directory == tmp_path / "x"
    for name in ("base", "instruct"):
        assert [line["loss"] for line in read_log(log, name)] == [
            line["loss"] for line in read_log(whole / "log.jsonl", name)
        ]
    found, expected = (json.loads((path / runs.FINISHED).read_text()) for path in (directory, whole))
    assert found["hash"] == expected["hash"]


def test_a_later_stage_carries_on_what_an_earlier_one_trained(config, tmp_path):
    first = config.model_copy(update={"phases": config.phases[:1], "output": tmp_path / "first"})
    later = config.model_copy(
        update={"phases": config.phases[1:], "output": tmp_path / "later", "start": tmp_path / "first"}
    )
    stages.run_stage(first)
    stages.run_stage(later)
    before, after = (checkpoint.load(tmp_path / name).compressor.projectors.state_dict() for name in ("first", "later"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_renames_what_it_wraps(config, tmp_path):
    """The language model is trained whole, then with an adapter on top: the first training must not be lost."""
    whole = config.phases[1].model_copy(
        update={"name": "whole", "lora": None, "trainable": ["backbone.language_model.*"]}
    )
    phases = [whole, config.phases[1]]
    directory = stages.run_stage(config.model_copy(update={"phases": phases}))
    name = "backbone.language_model.model.layers.0.self_attn.q_proj"
    first = checkpoint.load(directory / "phases" / "whole").get_parameter(f"{name}.weight")
    last = checkpoint.load(directory).get_parameter(f"{name}.base_layer.weight")
    assert torch.equal(first, last)


def test_phases_of_one_name_are_refused(config):
    with pytest.raises(ValueError, match="names must differ"):
        stages.run_stage(config.model_copy(update={"phases": [config.phases[0]] * 2}))


def run_main(config, tmp_path, *argv):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return stages.main("stage2", ["--config", str(path), *argv], ROOT)


def test_the_command_says_steps_loss_and_place(config, tmp_path):
    code, line = run_main(config, tmp_path, "--local_rank=0", "phases.base.steps=2", "phases.1.steps=3")
    loss = losses(tmp_path / "x" / "log.jsonl")["instruct", 3]
    assert (code, line) == (0, f"stage2: 5 steps, loss {loss:.4f} -> {tmp_path / 'x'}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("phases.base.learning_rat=1", "unknown key. Did you mean 'learning_rate'"),
        ("phases.base.trainable=[compressor.projector.*]", "compressor.projectors.*"),
        ("phases.base.data=[none.jsonl]", "none.jsonl"),
        ("stage=stage3", "run train/stage3.py"),
        ("start=nowhere", "nowhere"),
        ("deepspeed=zero9.json", "there is no file zero9.json"),
        ("precision=float16", "float16 needs an accelerator"),
    ],
)
def test_mistakes_are_one_message_without_a_traceback(config, tmp_path, override, said):
    if "float16" in override and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    code, line = run_main(config, tmp_path, override)
    assert code == 2 and said in line
    assert line.startswith("error: ") and len(line.splitlines()) < 20


def test_a_run_that_was_asked_to_stop_says_so(config, tmp_path, monkeypatch):
    def stop(config):
        raise stopping.Stopped("base stopped after step 3 of 5")

    monkeypatch.setattr(stages, "run_stage", stop)
    code, line = run_main(config, tmp_path)
    assert code == 75 and line == "base stopped after step 3 of 5. The same command goes on from there."


def test_a_recipe_makes_what_it_lacks(monkeypatch, tmp_path):
    """Commands of the same names stand in for data_prep/sample.py and train/stage1.py: they leave what those leave."""
    (tmp_path / "configs/sample/langdc").mkdir(parents=True)
    member = {"name": "none"}
    phase = {"name": "a", "objective": "caption", "data": ["data/sample/train.jsonl"], "trainable": ["*"], "steps": 1}
    recipe = {
        "stage": "stage2",
        "model": {"backbone": member, "compressor": member},
        "phases": [phase],
        "start": "runs/stage1",
    }
    (tmp_path / "configs/sample/langdc/stage2.yaml").write_text(yaml.safe_dump(recipe))
    for name, made in (
        ("data_prep/sample.py", "data/sample/train.jsonl"),
        ("train/stage1.py", "runs/stage1/finished.json"),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(
            f"import os, pathlib\nassert 'RANK' not in os.environ\npath = pathlib.Path({made!r})\n"
            "path.parent.mkdir(parents=True)\npath.touch()\n"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    started, done = [], tmp_path / "done"
    done.mkdir()
    runs.write_json(done / runs.FINISHED, {"steps": 1, "loss": 0.5})
    monkeypatch.setattr(stages, "run_stage", lambda config: started.append(config) or done)
    code, line = stages.main("stage2", [], tmp_path)
    assert (code, line) == (0, f"stage2: 1 steps, loss 0.5000 -> {done}")
    assert started[0].start.as_posix() == "runs/stage1"
    assert (tmp_path / "data/sample/train.jsonl").is_file()
