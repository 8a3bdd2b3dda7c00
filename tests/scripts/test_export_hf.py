"""The sample's checkpoint as plain directories: they load with transformers and PEFT alone, and answer the same."""

from pathlib import Path

import peft
import pytest
import torch
from langdc.verify import differences, fingerprint, probe
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from langdc import adapters, checkpoint
from scripts.export_hf import main
from tests import tiny

IDS = torch.arange(12)[None]


def run(*words: object) -> int:
    return main([*map(str, words)])


@torch.no_grad()
def logits(model) -> Tensor:
    return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "merged"
    assert run("sample:langdc", out, "--no-verify-save") == 0
    return out


def test_every_part_loads_with_transformers_alone(merged: Path) -> None:
    model = checkpoint.load("sample:langdc")
    language = AutoModelForCausalLM.from_pretrained(merged / "language_model")
    torch.testing.assert_close(logits(language), logits(model.backbone.language_model), atol=1e-4, rtol=0)
    assert not any("lora" in name for name, _ in language.named_parameters())
    captioner = AutoModelForCausalLM.from_pretrained(merged / "captioner")
    assert torch.equal(logits(captioner), logits(model.captioner.captioner.language_model))
    encoder = AutoModel.from_pretrained(merged / "image_encoder")
    assert sum(p.numel() for p in encoder.parameters()) == sum(
        p.numel() for p in model.backbone.encoders["image"].parameters()
    )
    assert AutoTokenizer.from_pretrained(merged / "language_model").chat_template


def test_together_they_are_a_checkpoint_that_answers_the_same(merged: Path) -> None:
    found, expected = checkpoint.load(merged), checkpoint.load("sample:langdc")
    torch.testing.assert_close(probe(found), probe(expected), atol=1e-4, rtol=0)
    assert checkpoint.read_card(merged)["lora"] is None
    assert str(merged) not in (merged / checkpoint.CARD).read_text()
    adapters.merge(expected.backbone.text_model)
    assert differences(fingerprint(expected), fingerprint(found)) == []


def test_the_card_names_parts_and_training(merged: Path) -> None:
    text = (merged / "README.md").read_text()
    for word in ("`language_model/`", "`captioner/`", "steps 120", "sample:clip", "license: other"):
        assert word in text


def test_the_adapter_alone_and_a_fresh_process_with_peft_agrees(tmp_path: Path, capsys) -> None:
    assert run("sample:langdc", tmp_path / "out", "--adapter") == 0
    said = capsys.readouterr().out
    assert "fresh process loaded the same" in said and "so did one with PEFT alone" in said
    assert not (tmp_path / "out/language_model").exists()
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out/adapter", dtype=torch.float32)
    expected = logits(checkpoint.load("sample:langdc").backbone.language_model)
    torch.testing.assert_close(logits(adapted), expected, atol=1e-4, rtol=0)


def test_half_types_are_stored_and_the_rest_agrees(tmp_path: Path) -> None:
    assert run("sample:langdc", tmp_path / "out", "--dtype", "bfloat16", "--no-verify-save") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/language_model")
    assert model.dtype == torch.bfloat16
    found, exact = probe(checkpoint.load(tmp_path / "out")), probe(checkpoint.load("sample:langdc"))
    assert 0 < (found - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_checkpoint_without_an_adapter_has_none_to_write(tmp_path: Path, capsys) -> None:
    model = tiny.model("pool")
    tensors = checkpoint.own_tensors(model, [name for name, _ in model.named_parameters()])
    checkpoint.save(model, tmp_path / "run", tensors=tensors, info={})
    assert run(tmp_path / "run", tmp_path / "out", "--adapter") == 2
    assert "has no adapter; leave out --adapter" in capsys.readouterr().err
    assert run(tmp_path / "run", tmp_path / "out", "--no-verify-save") == 0
    found = checkpoint.load(tmp_path / "out")
    assert differences(fingerprint(model, logits=False), fingerprint(found)) == []
    torch.testing.assert_close(probe(found), probe(model), atol=1e-4, rtol=0)
