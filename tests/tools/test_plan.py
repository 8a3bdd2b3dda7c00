"""Plans: what a run takes, told without weights; a probe measures a few real steps."""

import re
from pathlib import Path

import pytest

from langdc import jsonl
from langdc.config import RunConfig, load, save
from langdc.data.records import read_records
from langdc.tools.plan import _GIB as GIB
from langdc.tools.plan import _Layout as Layout
from langdc.tools.plan import _plan as plan
from langdc.tools.plan import _probe as probe
from langdc.tools.plan import _readable as readable
from langdc.tools.plan import main
from tests import tiny
from tests.train import small


def test_a_small_run_is_planned_and_the_probe_measures_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = small.run_config(tiny.model("pool"), trainable=["backbone.projectors.*"], steps=7, kinds=["count"])
    found, measured = plan(config), probe(config)
    model = tiny.model("pool")
    assert found["steps"] == 7 and found["samples"] == 6
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["trained"] == sum(parameter.numel() for parameter in model.backbone.projectors.parameters())
    assert found["tokens"] == pytest.approx(measured["tokens"], rel=0.1)
    assert found["flops"] / 7 == pytest.approx(measured["flops"], rel=0.3)
    assert not list(tmp_path.iterdir())


def test_zero_divides_and_checkpointing_saves():
    config = small.run_config(tiny.model("pool"), trainable=["backbone.language_model.*"], epochs=2, steps=None)
    found = plan(config, gpus=2)
    assert found["steps"] == 4, "six videos, two processes with two each, two epochs"
    memory = found["memory"]
    assert memory[Layout()] > memory[Layout(2)] > memory[Layout(3)] > memory[Layout(3, offload=True)]
    assert all(memory[layout] > memory[Layout(layout.zero, layout.offload, True)] for layout in map(Layout, (0, 2, 3)))


def test_a_full_size_recipe_is_planned_without_its_weights(capsys: pytest.CaptureFixture):
    found = plan(load(RunConfig, "langdc_3b/stage1_llm_image"), gpus=8)
    assert 4.2e9 < found["parameters"] < 4.6e9 and found["samples"] is None and found["flops"] is None
    assert found["memory"][Layout(2, checkpointing=True)] < 80 * GIB
    assert main(["langdc_3b/stage1_llm_image", "--gpus", "8", "--memory", "24"]) == 0
    assert "To fit: deepspeed=deepspeed/zero" in capsys.readouterr().err


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="give at least 1"):
        main(["sample/pool", "--gpus", "0"])


def test_a_plan_says_what_a_probe_would_tell_and_figures_have_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    config = small.run_config(tiny.model("vidcom2", keep=0.25), lora={"rank": 2}, steps=2)
    save(config, tmp_path / "run.yaml")
    monkeypatch.setattr("langdc.log.console.width", 200)
    assert main([str(tmp_path / "run.yaml")]) == 0
    said = capsys.readouterr().err
    assert said.count("not known: weights are not loaded; use --probe") == 4 and "meta" not in said + caplog.text
    assert main([str(tmp_path / "run.yaml"), "--probe"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"operations +0\.\d+ TFLOP", said) and re.search(r"time +[\d.]+ s\b", said)
    assert re.search(r"peak memory +[\d.]+ GiB", said) and "not known" not in said
    assert main([str(tmp_path / "run.yaml"), "train.data=[gone.jsonl]"]) == 0
    assert "not known: there is no gone.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("time", 1.234, "1.2 s"),
        ("time", 31.8, "32 s"),
        ("time", 600, "10 min"),
        ("time", 5.5e4, "15 h"),
        ("operations", 4.3e10, "0.043 TFLOP"),
        ("operations", 2.5e19, "25 EFLOP"),
        ("peak memory", 1.256, "1.26 GiB"),
        ("steps", 1200, "1,200"),
    ],
)
def test_figures_are_readable(name: str, value: float, text: str):
    assert readable(name, value) == text


def test_records_of_a_list_are_not_planned(tmp_path: Path, capsys: pytest.CaptureFixture):
    config = small.run_config(tiny.model("pool"), trainable=["backbone.projectors.*"], kinds=["count"])
    save(config, tmp_path / "run.yaml")
    (data,) = config.train.files
    jsonl.write_lines(tmp_path / "q.jsonl", [{"file": str(data), "line": 1, "id": read_records(data)[0].id}])
    assert main([str(tmp_path / "run.yaml"), "--quarantine", str(tmp_path / "q.jsonl")]) == 0
    assert re.search(r"samples +5\b", capsys.readouterr().err)
