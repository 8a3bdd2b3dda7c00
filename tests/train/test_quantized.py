"""QLoRA for real: adapters learn on a language model whose linear layers are in 4 bits, by bitsandbytes on the CPU.

`make test-qlora` runs it.
"""

import json
from pathlib import Path

import pytest
import torch

from langdc import checkpoint, jsonl
from langdc.config import MemberConfig, ModelConfig
from langdc.language_models import load_language_model
from langdc.train.run import train
from tests import tiny
from tests.train import small

bitsandbytes = pytest.importorskip("bitsandbytes", reason="`make test-qlora` runs this")


def videogpt_plus(folder: Path) -> ModelConfig:
    """LangDC on a backbone whose language model is in 4 bits."""
    torch.manual_seed(0)
    load_language_model(tiny.qwen2(64)).save_pretrained(folder)
    return tiny.config("langdc", tiny.backbone_settings(language_model=str(folder), quantize="nf4"))


def qwen2_5_vl(folder: Path) -> ModelConfig:
    """A resampler on a stock model, whose encoder stays whole."""
    backbone = MemberConfig(name="qwen2_5_vl", source="tiny:qwen2_5_vl", frames=8, quantize="nf4")
    return ModelConfig(backbone=backbone, compressor=MemberConfig(name="resampler", queries=3, depth=1))


@pytest.mark.parametrize(
    ("build", "trained"),
    [(videogpt_plus, "compressor.post_projector.*"), (qwen2_5_vl, "compressor.*")],
    ids=["videogpt_plus", "qwen2_5_vl"],
)
def test_adapters_learn_on_four_bits_and_come_back(build, trained: str, tmp_path: Path) -> None:
    settings = {
        "output": str(tmp_path / "run"), "trainable": [trained], "steps": 10, "batch_size": 6,
        "learning_rate": 1e-2, "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}, "verify_save": True,
    }  # fmt: skip
    directory = train(small.run_config(build(tmp_path / "model"), **settings))
    losses = [line["loss"] for line in jsonl.read(directory / "log.jsonl")]
    assert losses[-1] < losses[0] - 0.1
    model = checkpoint.load(directory)
    four = {name for name, part in model.named_modules() if isinstance(part, bitsandbytes.nn.Linear4bit)}
    assert any(name.endswith("layers.0.self_attn.q_proj.base_layer") for name in four)
    assert not any("visual" in name or name.startswith("compressor.") for name in four)
    linear = model.get_submodule(min(four))
    assert linear.weight.dtype == torch.uint8
    adapters = [p for name, p in model.named_parameters() if ".lora_B." in name]
    assert adapters and all(p.abs().sum() > 0 for p in adapters)
    assert json.loads((directory / "finished.json").read_text())["verified"] > 0
