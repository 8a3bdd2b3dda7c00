"""Adapters of the captioner: they change it, and merged they change it alike."""

import pytest
import torch

from langdc.adapters import adapt, merge
from langdc.config import LoraConfig
from langdc.language_models import load_language_model
from tests import tiny


def test_merged_adapters_leave_a_plain_model_that_says_the_same() -> None:
    captioner = tiny.captioner()
    text = captioner.language_model.base_model
    names = set(captioner.state_dict())
    visual = tiny.visual([5, 3])
    captions = [captioner.encode("red square"), captioner.encode("blue")]
    before = captioner.supervised(visual, captions).loss
    adapt(text, LoraConfig(rank=2, alpha=4, dropout=0.0))
    torch.manual_seed(1)
    for name, parameter in text.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted = captioner.supervised(visual, captions).loss
    assert abs(adapted - before) > 0.1
    changed = merge(text)
    assert set(captioner.state_dict()) == names
    assert len(changed) == 3 * 7 and set(changed) <= set(text.state_dict())
    torch.testing.assert_close(captioner.supervised(visual, captions).loss, adapted, rtol=1e-5, atol=1e-5)


def test_targets_of_adapters_that_match_nothing_are_named():
    model = load_language_model("tiny:qwen2").base_model
    with pytest.raises(
        ValueError, match=r"is called k_projj\. Did you mean 'k_proj'\? There is: .*down_proj, .*v_proj"
    ):
        adapt(model, LoraConfig(rank=2, alpha=4, dropout=0, targets=["q_proj", "k_projj"]))
    with pytest.raises(ValueError, match="is called nothing"):
        adapt(model, LoraConfig(rank=2, alpha=4, dropout=0, targets=[]))
    adapt(model, LoraConfig(rank=2, alpha=4, dropout=0, targets=["layers.0.self_attn.q_proj"]))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 1
