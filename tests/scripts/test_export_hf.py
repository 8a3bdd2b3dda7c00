"""The sample's checkpoint as plain directories: they load with transformers and PEFT alone, and answer the same."""

import shutil
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from langdc import VideoLM, adapters, checkpoint
from langdc.backbones.chat import conversation
from langdc.config import LoraConfig, ModelConfig, check
from langdc.model import VideoModel
from langdc.sample import weights
from langdc.types import Frames
from scripts.export_hf import main
from tests import stock, tiny

IDS = torch.arange(12)[None]


def run(*words: object) -> int:
    return main([*map(str, words)])


@torch.no_grad()
def logits(model) -> Tensor:
    return model(input_ids=IDS).logits


@torch.no_grad()
def probe(model) -> Tensor:
    """Logits after a fixed question about fixed noise, read through every part that answers: [vocabulary]."""
    backbone, rng = model.backbone, torch.Generator().manual_seed(0)
    count = backbone.segments * backbone.frames_per_segment
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=rng)
    video = backbone.features_of([Frames(pixels, torch.arange(count) / 2)], model.compressor.needs)[0]
    tokens = backbone.append_newline_tokens(model.compressor([video]).tokens[0], video)
    prompt = backbone.prompt(conversation("what happens in the video ?"), media=[video])
    spliced = backbone.splice([prompt], [[tokens]])[0]
    positions = torch.arange(len(spliced.embeds))[None]
    found = backbone.text_model(inputs_embeds=spliced.embeds[None], position_ids=positions, use_cache=False)
    return backbone.lm_head(found.last_hidden_state[:, -1])[0]


def tensors(model) -> dict[str, Tensor]:
    """All parameters that something reads."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in named.items() if name not in model.untrained}


def assert_same(found, expected) -> None:
    here, there = tensors(found), tensors(expected)
    assert here.keys() == there.keys()
    assert [name for name in here if not torch.equal(here[name], there[name])] == []


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
    assert torch.equal(logits(captioner), logits(model.compressor.captioner.language_model))
    encoder = AutoModel.from_pretrained(merged / "image_encoder")
    assert sum(p.numel() for p in encoder.parameters()) == sum(
        p.numel() for p in model.backbone.encoders["image"].parameters()
    )
    assert AutoTokenizer.from_pretrained(merged / "language_model").chat_template


def test_together_they_are_a_checkpoint_that_answers_the_same(merged: Path) -> None:
    found, expected = checkpoint.load(merged), checkpoint.load("sample:langdc")
    torch.testing.assert_close(probe(found), probe(expected), atol=1e-4, rtol=0)
    assert checkpoint.read_manifest(merged)["lora"] is None
    assert str(merged) not in (merged / checkpoint.MANIFEST).read_text()
    adapters.merge(expected.backbone.text_model)
    assert_same(found, expected)


def test_the_card_names_parts_and_training(merged: Path) -> None:
    text = (merged / "README.md").read_text()
    for word in ("`language_model/`", "`captioner/`", "steps 120", "sample:clip", "license: other"):
        assert word in text


def test_the_adapter_alone_loads_with_peft(tmp_path: Path, capsys) -> None:
    assert run("sample:langdc", tmp_path / "out", "--adapter") == 0
    said = capsys.readouterr().out
    assert "out: loaded again, the same" in said and ", with PEFT alone" in said
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
    assert_same(found, model)
    torch.testing.assert_close(probe(found), probe(model), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def stock_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny Qwen2.5-VL with an adapter and a captioner of its own, both changed."""
    place = tmp_path_factory.mktemp("stock")
    shutil.copytree(stock.folder("qwen2_5_vl"), place / "published")
    shutil.copytree(weights("language_model"), place / "captioner")
    compressor = {
        "name": "langdc", "captioner": str(place / "captioner"), "prompt": "describe it", "layer": 2, "pool": [2],
        "captioner_tokenizer": str(place / "captioner"), "max_soft_tokens": 4,
    }  # fmt: skip
    backbone = {"name": "qwen2_5_vl", "source": str(place / "published"), "frames": 4}
    model = VideoModel(check(ModelConfig, {"backbone": backbone, "compressor": compressor}, "test"))
    lora = LoraConfig(rank=2, alpha=4)
    adapters.adapt(model.backbone.text_model, lora)
    changed = [name for name, _ in model.named_parameters() if ".lora_" in name or "captioner" in name]
    torch.manual_seed(0)
    with torch.no_grad():
        for name in changed:
            parameter = model.get_parameter(name)
            parameter += 0.02 * torch.randn(parameter.shape)
    names = {*changed, *checkpoint.unpublished(model)}
    tensors = checkpoint.own_tensors(model, names)
    checkpoint.save(model, place / "run", tensors=tensors, lora=lora, info={"stage": "test"})
    return place


def test_a_run_on_a_stock_model_needs_nothing_else(stock_run: Path, tmp_path: Path) -> None:
    """Its parts load with transformers alone, and the whole loads where the published weights are not."""
    out = tmp_path / "out"
    assert run(stock_run / "run", out) == 0
    expected = checkpoint.load(stock_run / "run")
    adapters.merge(expected.backbone.text_model)
    kept = tensors(expected)
    away = stock_run.rename(tmp_path / "away")
    try:
        found = checkpoint.load(out)
        here = tensors(found)
        assert here.keys() == kept.keys() and all(torch.equal(here[name], kept[name]) for name in kept)
        alone = AutoModelForImageTextToText.from_pretrained(out / "backbone")
        assert torch.equal(logits(alone), logits(found.backbone.language_model))
        assert checkpoint.read_manifest(out)["lora"] is None
        answer = VideoLM.from_pretrained(out).ask(stock.mp4(tmp_path, count=8, fps=4), "what moves ?", max_new_tokens=2)
        assert answer.captions is not None
    finally:
        away.rename(stock_run)


def test_the_adapter_of_a_stock_model(stock_run: Path, tmp_path: Path, capsys) -> None:
    assert run(stock_run / "run", tmp_path / "out", "--adapter") == 0
    assert ", with PEFT alone" in capsys.readouterr().out
    assert not (tmp_path / "out/backbone").exists() and (tmp_path / "out/captioner").is_dir()
