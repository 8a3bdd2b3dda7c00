"""`langdc embed`: what it writes is read by transformers alone, and in vLLM's way, to the same first logits."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from langdc import VideoLM
from langdc.cli import main
from langdc.convert.export import export
from langdc.tools.embed import prompt_embeds
from tests import imagetext, stock, tiny

QUESTION = "what is in the video ?"
EVS = ("--compressor", "evs", "--keep", "0.5")


def written(tmp_path: Path, model: object, *words: str) -> Path:
    clip = stock.mp4(tmp_path, count=8, fps=4)
    out = tmp_path / "found.safetensors"
    assert main(["embed", str(clip), QUESTION, "--model", str(model), "--out", str(out), *words]) == 0
    return out


def read(out: Path) -> tuple[Tensor, dict[str, str]]:
    with safe_open(out, "pt") as file:
        return file.get_tensor("prompt_embeds"), file.metadata()


def first_logits(lm: VideoLM, clip: Path) -> Tensor:
    """The model's own, of a prompt about a video: [vocabulary]."""
    video = lm.open(clip)
    return lm.read(lm.prompt(QUESTION, video), [video]).logits.flatten()


@torch.no_grad()
def logits_of(model, embeds: Tensor) -> Tensor:
    return model(inputs_embeds=embeds[None].to(model.dtype)).logits[0, -1]


def as_vllm(data: str, width: int, dtype: torch.dtype) -> Tensor:
    """A tensor as vLLM 0.33.0 reads and checks it."""
    tensor = torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True, map_location="cpu")
    assert tensor.layout == torch.strided and tensor.ndim == 2 and tensor.shape[1] == width
    assert tensor.is_floating_point()
    return tensor.to(dtype)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *((name, {}) for name in ("llava_onevision", "llava_video", "internvl", "video_llama_3")),
        ("qwen2_5_vl", {"new_tokens": "words"}),
    ],
)
def test_the_stock_model_reads_them(tmp_path: Path, family: str, settings: dict) -> None:
    """The last has three axes, on which new tokens may stand like words."""
    pool, backbone = {"name": "pool", "sides": [2]}, {"name": family, "frames": 4, **settings}
    (tmp_path / "method.yaml").write_text(json.dumps({"backbone": backbone, "compressor": pool}))
    out = written(tmp_path, f"tiny:{family}", "--config", str(tmp_path / "method.yaml"))
    embeds, about = read(out)
    lm = VideoLM.from_pretrained(f"tiny:{family}", pool, backbone=backbone)
    model = AutoModelForImageTextToText.from_pretrained(stock.folder(family))
    expected = first_logits(lm, tmp_path / "clip.mp4")
    torch.testing.assert_close(logits_of(model, embeds), expected, atol=1e-5, rtol=0)
    assert (logits_of(model, embeds[1:]) - expected).abs().max() > 1e-3
    assert about["n"] == str(len(embeds)) and about["question"] == QUESTION and about["model"] == f"tiny:{family}"
    assert json.loads(about["method"]) == {"backbone": backbone, "compressor": pool}
    assert not out.with_suffix(".json").exists()


def test_a_learned_compressor_goes_to_the_exported_language_model(tmp_path: Path) -> None:
    """The request's body holds the same tensor, and nothing that vLLM would refuse."""
    export("sample:langdc", tmp_path / "hf")
    out = written(tmp_path, tmp_path / "hf", "--for", "vllm", "--max-new-tokens", "5")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf/language_model")
    lm = VideoLM.from_pretrained(tmp_path / "hf")
    embeds, about = read(out)
    assert json.loads(about["method"])["compressor"]["name"] == "langdc"
    torch.testing.assert_close(logits_of(model, embeds), first_logits(lm, tmp_path / "clip.mp4"), atol=1e-5, rtol=1e-6)
    apart = prompt_embeds(VideoLM.from_pretrained("sample:langdc"), tmp_path / "clip.mp4", QUESTION)
    torch.testing.assert_close(apart, embeds, atol=1e-5, rtol=0)  # of the checkpoint whose adapter is not merged
    body = json.loads(out.with_suffix(".json").read_text())
    assert torch.equal(as_vllm(body.pop("prompt_embeds"), model.config.hidden_size, model.dtype), embeds)
    assert body == {"max_tokens": 5, "temperature": 0, "stop_token_ids": lm.model.backbone.end_ids}


def test_they_keep_the_type_of_the_model(tmp_path: Path) -> None:
    words = ("--compressor", "evs", "--keep", "0.5", "--frames", "4", "--dtype", "bfloat16", "--for", "vllm")
    out = written(tmp_path, "tiny:llava_onevision", *words)
    embeds, _ = read(out)
    assert embeds.dtype == torch.bfloat16
    data = json.loads(out.with_suffix(".json").read_text())["prompt_embeds"]
    assert torch.equal(as_vllm(data, embeds.shape[1], torch.bfloat16), embeds)
    assert len(base64.b64decode(data)) < 2 * embeds.nbytes + 4096  # no larger storage behind a view


def test_a_part_inside_the_language_model_is_refused_before_any_is_loaded(tmp_path: Path, capsys) -> None:
    out, method = tmp_path / "found.safetensors", tmp_path / "method.yaml"
    method.write_text(json.dumps({"backbone": {"name": "qwen2_vl"}, "kv": {"name": "pivotkv", "keep": 0.5}}))
    for words in (("--compressor", "fastv", "--keep", "0.5"), ("--config", str(method))):
        assert main(["embed", "clip.mp4", QUESTION, "--model", "nowhere", "--out", str(out), *words]) == 2
        assert "works inside the language model" in capsys.readouterr().err
    lm = VideoLM.from_pretrained("tiny:llava_onevision", kv={"name": "pivotkv", "keep": 0.5})
    with pytest.raises(ValueError, match="PivotKV works inside the language model"):
        prompt_embeds(lm, "clip.mp4", QUESTION)


def test_the_frame_selector_is_recorded_from_an_option_or_a_file(tmp_path: Path) -> None:
    chosen = {"name": "top", "scorer": {"model": str(imagetext.folder(tmp_path / "clip"))}, "fps": 4}
    method = {"backbone": {"name": "llava_onevision", "frames": 4}, "compressor": {"name": "evs", "keep": 0.5}}
    words = ("--backbone", "llava_onevision", "--frames", "4", "--compressor", "evs", "--keep", "0.5")
    option, about = read(written(tmp_path, "tiny:llava_onevision", *words, "--select", json.dumps(chosen)))
    assert json.loads(about["method"]) == {**method, "frames": chosen}
    (tmp_path / "method.yaml").write_text(json.dumps({**method, "frames": chosen}))
    file, same = read(written(tmp_path, "tiny:llava_onevision", "--config", str(tmp_path / "method.yaml")))
    assert torch.equal(option, file) and json.loads(same["method"]) == json.loads(about["method"])
    plain, _ = read(written(tmp_path, "tiny:llava_onevision", *words))
    assert not torch.equal(option, plain)


@pytest.mark.parametrize(
    ("model", "served", "said"),
    [
        ("qwen2_vl", False, "by time, row and column"),
        ("qwen2_5_vl", True, "by time, row and column"),
        ("qwen3_vl", True, "deepstack_visual_embeds"),
        ("qwen3_5", False, "by time, row and column"),
    ],
)
def test_what_embeddings_alone_do_not_say(tmp_path: Path, capsys, model: str, served: bool, said: str) -> None:
    """vLLM is named where it compresses videos of the model."""
    out, clip = tmp_path / "found.safetensors", stock.mp4(tmp_path, count=8, fps=4)
    assert main(["embed", str(clip), QUESTION, "--model", f"tiny:{model}", "--out", str(out), *EVS]) == 2
    error = capsys.readouterr().err
    assert said in error and ("vLLM" in error) == served and not out.exists()


def test_padding_among_the_rows_is_refused(tmp_path: Path) -> None:
    lm = VideoLM(tiny.model("pool"))
    compress = lm.compress

    def padded(batch):
        [found] = compress(batch)
        return [replace(found, tokens=replace(found.tokens, padding=torch.arange(len(found.tokens)) > 3))]

    lm.compress = padded
    with pytest.raises(ValueError, match="soft_token 'at'"):
        prompt_embeds(lm, stock.mp4(tmp_path, count=8, fps=4), "what happens ?")


def test_what_is_refused_before_a_model_is_loaded(tmp_path: Path, capsys) -> None:
    """A body of another prompt stays as it is."""
    body = tmp_path / "found.json"
    body.write_text("{}")
    words = [QUESTION, "--model", "nowhere", "--out", str(tmp_path / "found.safetensors")]
    for video, more, said in (
        ("clip.mp4", (), "found.json is there already"),
        ("clip.mp4", ("--for", "vllm", "--max-new-tokens", "-3"), "must be greater than 0, but is -3"),
        (str(tmp_path), ("--for", "vllm"), "is a folder; langdc ask, compare and embed take a file"),
        (
            "clip.mp4",
            ("--for", "vllm", "--select", "aks"),
            "'{name: aks, scorer: {model: FOLDER}}'; see docs/videos.md",
        ),
    ):
        assert main(["embed", video, *words, *more]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert body.read_text() == "{}"


def test_the_name_of_the_file(tmp_path: Path, capsys) -> None:
    assert main(["embed", "clip.mp4", QUESTION, "--model", "tiny:qwen2_vl", "--out", str(tmp_path / "found.pt")]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err
