"""QLoRA for real: adapters learn on a language model whose linear layers are in 4 bits, by bitsandbytes on the CPU.

`make test-qlora` runs it.
"""

import json
from pathlib import Path

import pytest
import torch

from langdc import checkpoint
from langdc.config import StageConfig, check
from langdc.language_models import load_language_model
from langdc.sample.dataset import make_dataset
from langdc.training.stages import run_stage
from tests import tiny

bitsandbytes = pytest.importorskip("bitsandbytes", reason="`make test-qlora` runs this")


@pytest.fixture
def config(tmp_path: Path) -> StageConfig:
    make_dataset(tmp_path / "data", {"train": 4, "test": 0}, images=0, workers=1)
    torch.manual_seed(0)
    load_language_model(tiny.qwen2(64)).save_pretrained(tmp_path / "model")
    backbone = tiny.backbone_settings(language_model=str(tmp_path / "model"), quantize="nf4")
    phase = {
        "name": "instruct", "objective": "answer", "data": [tmp_path / "data" / "train.jsonl"],
        "trainable": ["compressor.post_projector.*"], "steps": 6, "batch_size": 4, "learning_rate": 1e-2,
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
    }  # fmt: skip
    tree = {"stage": "stage3", "model": tiny.config("langdc", backbone=backbone), "phases": [phase], "log_steps": 1}
    return check(StageConfig, tree | {"output": tmp_path / "run"}, "test")


def test_adapters_learn_on_four_bits_and_come_back(config: StageConfig):
    directory = run_stage(config)
    losses = [json.loads(line)["loss"] for line in (directory / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.1
    model = checkpoint.load(directory)
    linear = model.get_submodule("backbone.language_model.model.layers.0.self_attn.q_proj.base_layer")
    assert isinstance(linear, bitsandbytes.nn.Linear4bit) and linear.weight.dtype == torch.uint8
    adapters = [p for name, p in model.named_parameters() if ".lora_B." in name]
    assert adapters and all(p.abs().sum() > 0 for p in adapters)
    assert json.loads((directory / "finished.json").read_text())["phases"]["instruct"]["verified"]["tensors"] > 0
