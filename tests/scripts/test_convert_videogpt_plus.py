"""VideoGPT+'s release, an adapter of a Phi-3 and projectors, made here with tiny random weights, converts whole."""

import json
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor
from transformers import Phi3Config, Phi3ForCausalLM

from langdc import VideoLM, checkpoint
from langdc.projectors import build_projector
from langdc.video import write_video
from scripts.convert_videogpt_plus import main
from tests import tiny

PARTS = Path(__file__).parents[1] / "golden/langdc_ckpt"
WIDTH = 32
STREAMS = {"image_mm_projector": 32, "mm_projector": 48}


def run(*words: object) -> int:
    return main([*map(str, words)])


def save_base(folder: Path) -> Phi3ForCausalLM:
    torch.manual_seed(0)
    sizes = Phi3Config(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=len(tiny.tokenizer()) + 9, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = Phi3ForCausalLM(sizes)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return model


def save_release(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The authors' layout beside its base; the weights that the language model has once merged."""
    model = save_base(folder / "Phi-3-tiny").half().float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])
    adapted = peft.get_peft_model(model, lora)
    release = folder / "mvbench"
    deltas = {}
    for name, module in adapted.named_modules():
        if name.endswith("lora_B.default"):
            torch.nn.init.normal_(module.weight, std=0.1)
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_B.default")
            down = adapted.get_submodule(name.replace("lora_B", "lora_A")).weight
            deltas[f"{layer}.weight"] = (module.weight @ down).detach() * 2
    adapted.peft_config["default"].base_model_name_or_path = "microsoft/Phi-3-tiny"
    adapted.save_pretrained(str(release))
    extra = {}
    for name, width in STREAMS.items():
        states = build_projector("mlp2x_gelu", width, WIDTH).state_dict()
        extra |= {f"base_model.model.model.{name}.{key}": tensor.half() for key, tensor in states.items()}
    torch.save(extra, release / "non_lora_trainables.bin")
    settings = {
        "model_type": "VideoGPT+", "mm_vision_tower": str(PARTS / "InternVideo2-tiny.pt"),
        "image_mm_vision_tower": str(PARTS / "clip-tiny"), "mm_projector_type": "mlp2x_gelu",
        "image_mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
    }  # fmt: skip
    (release / "config.json").write_text(json.dumps(settings))
    return release, {name: (tensor + deltas.get(name, 0)).half().float() for name, tensor in before.items()}


def test_the_adapter_is_merged_and_the_model_answers(tmp_path: Path) -> None:
    release, merged = save_release(tmp_path)
    assert len(merged) > 10
    assert run(release, tmp_path / "out", "--heads", 4, "--no-verify-save") == 0
    model = checkpoint.load(tmp_path / "out")
    rows = len(tiny.tokenizer()) + 1  # with the authors' <im_patch>
    found = dict(model.backbone.language_model.named_parameters())
    for name, tensor in merged.items():
        assert torch.equal(found[name], tensor[:rows] if "embed" in name or "lm_head" in name else tensor), name
    assert model.config.compressor.settings == {"sides": [12, 8]}
    dice = torch.Generator().manual_seed(0)
    write_video(tmp_path / "x.mp4", torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8, generator=dice), 8)
    answer = VideoLM.from_pretrained(tmp_path / "out").open(tmp_path / "x.mp4").ask("what is it ?", max_new_tokens=2)
    assert answer.tokens == 16 * (144 + 64)
    template = model.backbone.tokenizer.chat_template
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = model.backbone.tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert text == "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("lacking", ["mm_projector.2.weight", "image_mm_projector.0.bias"])
def test_a_projector_that_would_stay_random_is_named(tmp_path: Path, capsys, lacking: str) -> None:
    release, _ = save_release(tmp_path)
    extra = torch.load(release / "non_lora_trainables.bin", weights_only=True)
    del extra[f"base_model.model.model.{lacking}"]
    torch.save(extra, release / "non_lora_trainables.bin")
    assert run(release, tmp_path / "out", "--heads", 4) == 2
    assert f"1 missing: {lacking}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_release_of_another_family_is_refused(tmp_path: Path, capsys) -> None:
    assert run(PARTS / "langdc_lora", tmp_path / "out") == 2
    assert "'VideoQwenVQA' model; a 'VideoGPT+' one is converted here" in capsys.readouterr().err
