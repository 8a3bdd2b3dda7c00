"""Patterns must choose something, and adapters must leave names alone."""

from types import SimpleNamespace

import pytest
import torch

from langdc.adapters import attach_lora
from langdc.config import LoraConfig
from langdc.train.trainable import select, unfreeze
from tests.training.toy import Toy

NAMES = ["backbone.projectors.image.weight", "backbone.projectors.video.weight", "compressor.captioner.embed.weight"]


def test_a_pattern_crosses_dots():
    assert select(NAMES, ["backbone.*"]) == set(NAMES[:2])
    assert select(NAMES, ["*.video.*", "compressor.captioner.embed.weight"]) == set(NAMES[1:])


def test_every_pattern_without_a_match_is_named_with_what_is_near():
    with pytest.raises(ValueError, match=r"'backbone\.projector\.\*'.*backbone\.projectors\.\*") as error:
        select(NAMES, ["backbone.projector.*", "compressor.*", "nothing"])
    assert "'nothing'" in str(error.value) and "'compressor.*'" not in str(error.value)


def test_everything_else_is_frozen():
    toy = Toy(0.0)
    trained = unfreeze(toy, ["projector.*"])
    assert trained == {"projector.weight", "projector.bias"}
    assert {name for name, p in toy.named_parameters() if p.requires_grad} == trained


def test_adapters_join_what_the_patterns_choose_and_change_nothing_yet():
    torch.manual_seed(0)
    toy = Toy(0.0).eval()
    batch = {"ids": torch.arange(12).view(2, 6), "labels": torch.arange(12).view(2, 6)}
    before = toy(**batch)["loss"]
    backbone = SimpleNamespace(text_model=toy.language_model.model)
    attach_lora(backbone, LoraConfig(rank=2, alpha=4, dropout=0.0))
    trained = unfreeze(toy, ["projector.*"], adapters=True)
    assert toy(**batch)["loss"] == before
    assert type(toy.language_model.model).__name__ == "Qwen2Model"
    lora = {name for name in trained if ".lora_" in name}
    assert len(lora) == 2 * 7 * 2  # A and B of seven matrices in two layers
    assert trained - lora == {"projector.weight", "projector.bias"}
    assert not any(p.requires_grad for name, p in toy.named_parameters() if "base_layer" in name)
