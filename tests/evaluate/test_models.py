"""What a model took to train is summed over its stages."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from langdc.evaluate.models import training_record, weights_identity


def _card(stage: str, **training: float) -> str:
    return json.dumps(
        {"stage": stage, "training": training, "model": {}, "lora": None, "parts": {}, "weights_sha256": ""}
    )


def _stage(folder: Path, name: str, start: Path | None, **figures: float) -> Path:
    (folder / name).mkdir()
    (folder / name / "langdc.json").write_text(_card(name, **{"steps": 1, **figures}))
    (folder / name / "finished.json").write_text(json.dumps(figures))
    (folder / name / "config.yaml").write_text(f"start: {start if start else 'null'}\n")
    return folder / name


def test_all_stages_of_a_model_count(tmp_path: Path):
    one = _stage(tmp_path, "stage1", None, samples=10, steps=2, flops=1e3, seconds=1.0)
    two = _stage(tmp_path, "stage2", one, samples=20, steps=4, flops=2e3, seconds=2.0)
    found = training_record(two)
    assert (found["samples"], found["steps"], found["flops"], found["seconds"]) == (30, 6, 3e3, 3.0)
    assert [stage["stage"] for stage in found["stages"]] == ["stage1", "stage2"]
    assert found["complete"]


def test_a_stage_that_is_gone_is_told(tmp_path: Path):
    two = _stage(tmp_path, "stage2", tmp_path / "gone", samples=20, steps=4, flops=2e3, seconds=2.0)
    found = training_record(two)
    assert (found["steps"], found["complete"]) == (4, False)


def test_a_checkpoint_alone_says_what_its_card_says(tmp_path: Path):
    (tmp_path / "langdc.json").write_text(_card("stage3", steps=7, flops=5.0))
    assert training_record(tmp_path)["steps"] == 7


def test_no_checkpoint_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="no checkpoint directory"):
        training_record(tmp_path / "nothing")


def test_a_start_that_leads_back_is_told(tmp_path: Path):
    one = _stage(tmp_path, "stage1", tmp_path / "stage1", samples=10, steps=2, flops=1e3, seconds=1.0)
    found = training_record(one)
    assert (found["steps"], found["complete"]) == (2, False)


def _write(path: Path, text: str) -> None:
    """A file that holds a text, in a form that is not damaged."""
    if path.suffix == ".safetensors":
        save_file({text: torch.zeros(1)}, path)
    else:
        path.write_text(json.dumps({"text": text}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "chat_template.jinja", "model.safetensors", "vocab/merges.txt"])
def test_every_file_of_a_stock_model_counts(tmp_path: Path, name: str):
    for file in ("config.json", "pytorch_model.bin", "chat_template.jinja", "model.safetensors", "vocab/merges.txt"):
        (tmp_path / "model" / file).parent.mkdir(parents=True, exist_ok=True)
        _write(tmp_path / "model" / file, "one")
    before = weights_identity(tmp_path / "model")
    assert weights_identity(Path(shutil.copytree(tmp_path / "model", tmp_path / "copy"))) == before
    _write(tmp_path / "model" / name, "two")
    assert weights_identity(tmp_path / "model") != before
