"""Patterns must choose something, and adapters must leave names alone."""

import pytest
import torch

from langdc.adapters import adapt
from langdc.config import LoraConfig
from langdc.train.trainable import _select, unfreeze
from tests import tiny
from tests.train import small

NAMES = ["backbone.projectors.image.weight", "backbone.projectors.video.weight", "compressor.captioner.embed.weight"]


def test_a_pattern_crosses_dots():
    assert _select(NAMES, ["backbone.*"]) == set(NAMES[:2])
    assert _select(NAMES, ["*.video.*", "compressor.captioner.embed.weight"]) == set(NAMES[1:])


def test_every_pattern_without_a_match_is_named_with_what_is_near():
    with pytest.raises(ValueError, match=r"'backbone\.projector\.\*'.*backbone\.projectors\.\*") as error:
        _select(NAMES, ["backbone.projector.*", "compressor.*", "nothing"])
    assert "'nothing'" in str(error.value) and "'compressor.*'" not in str(error.value)


def test_everything_else_is_frozen():
    model = tiny.model("pool")
    trained = unfreeze(model, ["backbone.projectors.image.*"])
    assert trained == {f"backbone.projectors.image.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def test_adapters_join_what_the_patterns_choose_and_change_nothing_yet():
    model = tiny.model("pool")
    batch = small.batch_of(small.data_of(model, small.run_config(model)), 0)["batch"]
    before = model(batch).logits
    adapt(model.backbone.text_model, LoraConfig(rank=2, alpha=4, dropout=0.0))
    trained = unfreeze(model, ["backbone.projectors.image.*"], adapters=True)
    assert torch.equal(model(batch).logits, before)
    assert type(model.backbone.text_model).__name__ == "Qwen2Model"
    lora = {name for name in trained if ".lora_" in name}
    assert len(lora) == 3 * 2 * 7  # A and B of seven matrices in three layers
    assert len(trained - lora) == 4
    assert not any(p.requires_grad for name, p in model.named_parameters() if "base_layer" in name)
