"""What a language model may be loaded with where the machine allows it: 4-bit weights, flash-attn, fused kernels.

flash-attn and liger-kernel need a GPU, so small stand-ins of them are put on the path.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.quantizers.quantizers_utils import should_convert_module

from langdc import devices
from langdc.language_models import fastest_attention, four_bits, load_language_model, use_liger
from langdc.pipeline import VideoLM
from tests import tiny

CUDA = devices.ACCELERATORS[0]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str = "", version: str = "9.9") -> None:
    """Put a package of our own on the path, with the version that it says."""
    package = folder / name.replace("-", "_")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    info = folder / f"{package.name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, package.name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    model = load_language_model(tiny.qwen2())
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def machine_with(monkeypatch: pytest.MonkeyPatch, kind: devices._Kind) -> None:
    """As if this were the best kind of device here, and its second one in use."""
    monkeypatch.setattr(devices, "kind", lambda: kind)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)


def test_four_bits_are_asked_of_transformers_as_qlora_has_them(folder, tmp_path, monkeypatch) -> None:
    install(tmp_path / "site", monkeypatch, "bitsandbytes")
    machine_with(monkeypatch, CUDA)
    asked: dict[str, Any] = {}
    plain = load_language_model(folder)

    def from_pretrained(source, **settings):
        asked.update(source=source, **settings)
        return plain, {key: [] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    model = load_language_model(folder, quantize="nf4")
    wanted = asked["quantization_config"]
    assert (wanted.load_in_4bit, wanted.bnb_4bit_quant_type, wanted.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert wanted.bnb_4bit_compute_dtype == torch.bfloat16
    assert asked["device_map"] == {"": torch.device("cpu")} and str(asked["source"]) == folder
    with devices.making(torch.device("cuda:1"), None):
        assert four_bits("nf4", tmp_path)["device_map"] == {"": torch.device("cuda:1")}, "where it was asked for"
    assert model.base_model.is_loaded_in_4bit


@pytest.mark.parametrize("attention", [3, True, [], "", "nowhere"])
def test_an_attention_that_is_none_is_no_fault_of_the_files(folder, attention: Any) -> None:
    with pytest.raises(ValueError, match=r"^attention=.*; allowed are eager, .*sdpa[^|]*$"):
        load_language_model(folder, attention)
    with pytest.raises(ValueError, match=r"attention=.*; allowed are "):
        VideoLM.from_pretrained("tiny:qwen2_vl", backbone={"attention": attention})


def test_skipped_modules_stay_whole_wherever_they_are(tmp_path, monkeypatch) -> None:
    install(tmp_path / "site", monkeypatch, "bitsandbytes")
    skipped = four_bits("nf4", tmp_path, ("visual",))["quantization_config"].llm_int8_skip_modules
    names = ("model.visual.blocks.0.attn.qkv", "visual.merger.mlp.0", "lm_head", "model.language_model.layers.0.mlp.up")
    assert [should_convert_module(name, skipped) for name in names] == [False, False, False, True]


def test_what_four_bits_lack_is_said(folder, tmp_path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ValueError, match=r"pip install 'langdc\[qlora\]'"):
        load_language_model(folder, quantize="nf4")
    with pytest.raises(ValueError, match="needs a checkpoint directory"):
        load_language_model(tiny.qwen2(), quantize="nf4")
    with pytest.raises(ValueError, match="'int3'; allowed is 'nf4'"):
        load_language_model(folder, quantize="int3")  # pyright: ignore[reportArgumentType]


def test_the_backbone_hands_the_setting_on() -> None:
    with pytest.raises(ValueError, match="quantize: nf4 needs a checkpoint directory"):
        tiny.model("pool", backbone=tiny.backbone_settings(quantize="nf4"))


def test_flash_attn_is_taken_where_it_is_and_can_be_used(tmp_path, monkeypatch) -> None:
    machine_with(monkeypatch, CUDA)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert fastest_attention(half=True, device=cuda) == ("sdpa", "flash-attn is not installed")
    install(tmp_path, monkeypatch, "flash_attn")
    assert fastest_attention(half=True, device=cpu) == ("sdpa", "flash-attn needs a CUDA device")
    assert fastest_attention(half=False, device=cuda)[0] == "sdpa"
    assert fastest_attention(half=True, device=cuda)[0] == "flash_attention_2"


def test_liger_changes_this_model_only_and_where_it_can(tmp_path, monkeypatch) -> None:
    model = load_language_model(tiny.qwen2())
    assert not use_liger(model, False) and not use_liger(model, "auto")
    with pytest.raises(ValueError, match=r"pip install 'langdc\[liger\]'"):
        use_liger(model, True)
    install(tmp_path, monkeypatch, "liger_kernel")
    (tmp_path / "liger_kernel/transformers.py").write_text(
        "given = []\ndef _apply_liger_kernel_to_instance(**settings):\n    given.append(settings)\n"
    )
    machine_with(monkeypatch, CUDA)
    with pytest.raises(ValueError, match="CUDA device, and the model is on the cpu"):
        use_liger(model, True)
    monkeypatch.setattr(type(model), "device", torch.device("meta"))
    assert not use_liger(model, True), "a model of shapes alone has no kernels"
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert use_liger(model, "auto")
    (settings,) = sys.modules["liger_kernel.transformers"].given  # pyright: ignore[reportAttributeAccessIssue]
    assert settings.pop("model") is model
    # what would be replaced for all models of a kind is left alone
    assert not any(settings[name] for name in ("rope", "cross_entropy", "fused_linear_cross_entropy"))
    assert settings["rms_norm"] and settings["swiglu"]
    monkeypatch.delitem(sys.modules, "liger_kernel.transformers")
