"""A captioner trained through adapters: only they and the projectors learn, and no checkpoint knows of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langdc import checkpoint
from langdc.config import StageConfig, check
from langdc.sample.dataset import make_dataset
from langdc.training import runs, stages
from tests import tiny

LORA = {"rank": 2, "alpha": 4, "dropout": 0.0}


@pytest.fixture
def config(tmp_path: Path) -> StageConfig:
    make_dataset(tmp_path / "data", {"train": 0, "test": 0}, images=8, workers=1)
    phase = {
        "objective": "caption",
        "data": [str(tmp_path / "data/images.jsonl")],
        "trainable": ["compressor.projectors.*"],
        "captioner_lora": LORA,
        "steps": 3,
        "batch_size": 4,
        "learning_rate": 1e-2,
    }
    phases = [{**phase, "name": "one"}, {**phase, "name": "two"}]
    model = tiny.config("langdc").model_dump(mode="json")
    tree = {"stage": "stage2", "model": model, "output": str(tmp_path / "x"), "phases": phases, "log_steps": 1}
    return check(StageConfig, tree, "test")


def test_the_adapters_are_merged_when_a_phase_is_done(config: StageConfig) -> None:
    directory = stages.run_stage(config)
    saved = {name: load_file(place / checkpoint.WEIGHTS) for name, place in (
        ("one", directory / "phases/one"), ("two", directory)
    )}  # fmt: skip
    assert json.loads((directory / runs.FINISHED).read_text())["steps"] == 6
    for tensors in saved.values():
        assert not any("lora" in name or "base_layer" in name for name in tensors)
    layer = "compressor.captioner.language_model.model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(saved["one"][layer], saved["two"][layer])
    unlearned = "compressor.captioner.language_model.model.layers.0.input_layernorm.weight"
    assert torch.equal(saved["one"][unlearned], saved["two"][unlearned])
    change = saved["two"][layer] - saved["one"][layer]
    assert torch.linalg.matrix_rank(change, rtol=1e-4) <= LORA["rank"]
    loaded = dict(checkpoint.load(directory).named_parameters())
    assert torch.equal(loaded[layer], saved["two"][layer])
