"""Plans: what a run takes, told without weights; a probe measures a few real steps."""

from pathlib import Path

import pytest

from langdc.config import RunConfig, load
from langdc.tools.plan import _GIB as GIB
from langdc.tools.plan import _Layout as Layout
from langdc.tools.plan import _plan as plan
from langdc.tools.plan import _probe as probe
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
        main(["sample/pool2x2/stage1", "--gpus", "0"])
