"""FLOP formulas agree with what torch counts on real models, and the stage timer sums what it should."""

import pytest
import torch
from langdc.metering import lm_head_flops, matmul_flops, synchronize, transformer_flops, vit_flops
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, Qwen2Config, Qwen2ForCausalLM

QWEN2 = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 112, "vocab_size": 200,
    "attn_implementation": "eager",  # torch counts nothing inside its fused kernel for CPUs
}  # fmt: skip
SIZES = {"layers": 3, "width": 48, "heads": 6, "kv_heads": 2, "head_width": 8, "mlp_width": 112}


def _counted(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def test_matmul():
    assert matmul_flops(3, 5, 7) == _counted(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 210


@pytest.mark.parametrize(("past", "new"), [(0, 37), (37, 1), (20, 9)])
def test_decoder(past: int, new: int):
    model = Qwen2ForCausalLM(Qwen2Config(**QWEN2)).eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        if past:
            model.model(torch.arange(past)[None], past_key_values=cache)
    counted = _counted(lambda: model.model(torch.arange(new)[None], past_key_values=cache))
    assert transformer_flops(**SIZES, new_tokens=new, past_tokens=past) == pytest.approx(counted, rel=0.02)


def test_head():
    model = Qwen2ForCausalLM(Qwen2Config(**QWEN2)).eval()
    blocks = _counted(lambda: model.model(torch.arange(11)[None]))
    whole = _counted(lambda: model(torch.arange(11)[None]))
    assert lm_head_flops(48, 200, 11) == pytest.approx(whole - blocks, rel=1e-6)


def test_an_mlp_without_gate_has_two_matrices():
    gated = transformer_flops(**SIZES, new_tokens=5)
    plain = transformer_flops(**SIZES, new_tokens=5, gated=False)
    assert gated - plain == 3 * matmul_flops(5, 48, 112)


def test_vision_transformer():
    config = CLIPVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=72,
        image_size=24,
        patch_size=4,
        attn_implementation="eager",
    )
    model = CLIPVisionModel(config).eval()
    counted = _counted(lambda: model(torch.zeros(5, 3, 24, 24)))
    assert vit_flops(2, 32, 72, patches=36, patch_values=48, clips=5) == pytest.approx(counted, rel=0.02)


def test_waiting_on_a_cpu_returns_at_once():
    synchronize()
    synchronize("cpu")
