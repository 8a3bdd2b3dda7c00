"""QLoRA for real: adapters learn on a language model whose linear layers are in 4 bits, by bitsandbytes on the CPU.

`make test-qlora` runs it.
"""

from pathlib import Path

import pytest
import torch

from langdc import checkpoint, jsonl
from langdc.language_models import load_language_model
from langdc.train.run import train
from tests import tiny
from tests.train import small

bitsandbytes = pytest.importorskip("bitsandbytes", reason="`make test-qlora` runs this")


def test_adapters_learn_on_four_bits_and_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    load_language_model(tiny.qwen2(64)).save_pretrained(tmp_path / "model")
    backbone = tiny.backbone_settings(language_model=str(tmp_path / "model"), quantize="nf4")
    settings = {
        "output": str(tmp_path / "run"), "trainable": ["compressor.post_projector.*"], "steps": 10, "batch_size": 6,
        "learning_rate": 1e-2, "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}, "verify_save": True,
    }  # fmt: skip
    directory = train(small.run_config(tiny.model("langdc", backbone=backbone), **settings))
    losses = [line["loss"] for line in jsonl.read(directory / "log.jsonl")]
    assert losses[-1] < losses[0] - 0.1
    model = checkpoint.load(directory)
    linear = model.get_submodule("backbone.language_model.model.layers.0.self_attn.q_proj.base_layer")
    assert isinstance(linear, bitsandbytes.nn.Linear4bit) and linear.weight.dtype == torch.uint8
    adapters = [p for name, p in model.named_parameters() if ".lora_B." in name]
    assert adapters and all(p.abs().sum() > 0 for p in adapters)
