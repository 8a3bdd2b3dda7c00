"""`langdc export --for vllm`: the folder loads with transformers alone, and its flags say what the checkpoint does."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from langdc import VideoLM, adapters, checkpoint
from langdc.budget import Budget
from langdc.compressors.base import vllm_share
from langdc.config import LoraConfig, ModelConfig, check
from langdc.model import VideoModel
from scripts.export_hf import main
from tests import stock

EVS = {"name": "evs", "keep": 0.25, "variant": "released"}
VIDCOM2 = {"name": "vidcom2", "keep": 0.9, "variant": "vllm"}
SIZES = json.loads((Path(stock.folder("qwen2_5_vl")) / "config.json").read_text())
DRAWN = {"source": {"config": SIZES, "init": "random"}}


def tuned(directory: Path, family: str, compressor: dict[str, Any], **settings: Any) -> Path:
    """A checkpoint of a stock model with an adapter that changes it."""
    backbone = {"name": family, "source": stock.folder(family), "frames": 8, **settings}
    torch.manual_seed(0)
    model = VideoModel(check(ModelConfig, {"backbone": backbone, "compressor": compressor}, "test"))
    lora = check(LoraConfig, {"rank": 2, "alpha": 4}, "lora")
    adapters.adapt(model.backbone.text_model, lora)
    changed = [name for name, _ in model.named_parameters() if ".lora_" in name]
    with torch.no_grad():
        for name in changed:
            parameter = model.get_parameter(name)
            parameter += 0.05 * torch.randn(parameter.shape)
    checkpoint.save(
        model,
        directory,
        tensors=checkpoint.own_tensors(model, {*changed, *checkpoint.unpublished(model)}),
        lora=lora,
        info={"stage": "test"},
    )
    return directory


def exported(directory: Path, *words: str) -> int:
    return main([str(directory / "run"), str(directory / "out"), "--for", "vllm", *words])


def flags_of(line: str) -> dict[str, str]:
    words = shlex.split(line)
    assert words[:2] == ["vllm", "serve"] and len(words) % 2 == 1
    return {"folder": words[2], **dict(zip(words[3::2], words[4::2], strict=True))}


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("family", "compressor"), [("qwen2_5_vl", EVS), ("qwen3_vl", VIDCOM2)])
def test_the_folder_is_the_tuned_model(tmp_path: Path, capsys, family: str, compressor: dict) -> None:
    """With transformers alone, its first logits on a video are those of the checkpoint without compression."""
    tuned(tmp_path / "run", family, compressor, positions="transformers")
    assert exported(tmp_path) == 0
    line, note, saved = lines(capsys)
    found = flags_of(line)
    assert note.startswith("vLLM reads as many frames") and "loaded again" in saved
    folder = Path(found["folder"])
    assert folder == tmp_path / "out/backbone" and found["--video-pruning-method"] == compressor["name"]
    alone: Any = SimpleNamespace(
        source=folder,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        model=AutoModelForImageTextToText.from_pretrained(folder),
    )
    clip = stock.clip()
    theirs = stock.stock_logits(alone, stock.stock_inputs(alone, family, [clip]))
    for run, tolerance in (("out", 1e-5), ("run", 1e-4)):  # merged into the weights, and beside them
        lm = VideoLM.from_pretrained(tmp_path / run, "identity")
        video = lm.open("clip.mp4", decoded=(clip, 0.0))
        prompt = lm.model.backbone.prompt(stock.conversation([clip]), media=[video.features])
        torch.testing.assert_close(lm.read(prompt, [video]).logits, theirs, atol=tolerance, rtol=0)
    published: Any = VideoLM.from_pretrained(stock.folder(family)).model.backbone
    untuned = stock.stock_logits(published, stock.stock_inputs(published, family, [clip]))
    assert (untuned - theirs).abs().max() > 1e-2


def test_the_flags(tmp_path: Path, capsys) -> None:
    tuned(tmp_path / "run", "qwen2_5_vl", EVS, fps=2.0, pixels=[64, 4096])
    assert exported(tmp_path, "--no-verify-save", "--dtype", "bfloat16") == 0
    line, _, trained = lines(capsys)
    assert "positions: trained" in trained
    found = flags_of(line)
    read, seen = (json.loads(found.pop(f"--{kind}-kwargs")) for kind in ("media-io", "mm-processor"))
    assert read == {"video": {"fps": 2.0, "min_frames": 2, "max_frames": 8}}
    assert seen["size"] == {"shortest_edge": 64, "longest_edge": 4096}
    assert seen["videos_kwargs"] == {"do_sample_frames": False, "cap_pixels_per_frame": True}
    assert {name: value for name, value in found.items() if name != "folder"} == {
        "--dtype": "bfloat16", "--video-pruning-rate": "0.75", "--video-pruning-method": "evs",
    }  # fmt: skip
    card = (tmp_path / "out/README.md").read_text()
    assert line.replace(str(tmp_path / "out"), ".") in card and trained in card


def test_the_rate_is_that_of_the_recorded_tokens(tmp_path: Path, capsys) -> None:
    """The number that vLLM reads makes the share that the compressor keeps, and as many frames are read."""
    tuned(tmp_path / "run", "qwen3_vl", VIDCOM2, frames=7)
    assert exported(tmp_path, "--no-verify-save") == 0
    found = flags_of(lines(capsys)[0])
    assert 1 - float(found["--video-pruning-rate"]) == vllm_share(Budget(keep=0.9), 100)
    assert json.loads(found["--media-io-kwargs"]) == {"video": {"min_frames": 8, "max_frames": 8}}


@pytest.mark.parametrize(
    ("family", "compressor", "settings", "said"),
    [
        ("qwen2_5_vl", {"name": "pool", "sides": [2]}, {}, "not by 'pool'"),
        ("qwen2_5_vl", {"name": "pool", "sides": [2]}, {}, "langdc embed --for vllm"),
        ("qwen2_5_vl", {**EVS, "variant": "fixed"}, {}, "name: evs, keep: 0.25, variant: released"),
        ("qwen2_5_vl", {"name": "evs", "tokens": 64, "variant": "released"}, {}, "tokens=64"),
        ("qwen2_vl", EVS, {}, "does not compress videos of qwen2_vl by 'evs'"),
        ("qwen3_5", EVS, {}, "does not compress videos of qwen3_5"),
        ("qwen2_5_vl", VIDCOM2, {}, "vidcom2 in qwen3_vl"),
        ("qwen3_vl", {**EVS, "frames_per_segment": 2}, {}, "one before each"),
        ("qwen2_5_vl", EVS, {"frames": 1024}, "768 frames"),
        ("qwen2_5_vl", EVS, {"tokenizer": stock.folder("qwen2_5_vl")}, "vLLM reads one folder"),
        ("qwen2_5_vl", EVS, {**DRAWN, "tokenizer": stock.folder("qwen2_5_vl")}, "random weights"),
    ],
)
def test_what_is_not_served(tmp_path: Path, capsys, family: str, compressor: dict, settings: dict, said: str) -> None:
    tuned(tmp_path / "run", family, compressor, **settings)
    assert exported(tmp_path) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_without_preprocessor_files_is_refused(tmp_path: Path, capsys) -> None:
    source = Path(shutil.copytree(stock.folder("qwen2_5_vl"), tmp_path / "published"))
    (source / "processor_config.json").unlink()
    tuned(tmp_path / "run", "qwen2_5_vl", EVS, source=str(source))
    assert exported(tmp_path) == 2
    assert "a processor" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_adapter_is_served_merged(tmp_path: Path, capsys) -> None:
    tuned(tmp_path / "run", "qwen2_5_vl", EVS)
    assert exported(tmp_path, "--adapter") == 2
    assert "leave out --adapter" in capsys.readouterr().err
