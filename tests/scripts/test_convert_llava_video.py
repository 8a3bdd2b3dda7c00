"""A checkpoint in the authors' layout, made from a tiny stock model, converts back to that very model."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, LlavaOnevisionConfig, LlavaOnevisionProcessor

from langdc import language_models, tiny
from langdc.backbones import backbones
from langdc.convert.commands import REPORT
from langdc.convert.files import chat_template
from langdc.convert.llava_video import _image_sizes, _load_tokenizer, _trained_as, _vision_sizes
from scripts.convert_llava_video import main
from tests import stock

SOURCE = tiny.folder("llava_video")
IMAGE, VIDEO = (json.loads((SOURCE / "config.json").read_text())[f"{kind}_token_index"] for kind in ("image", "video"))
END = language_models.load_tokenizer(SOURCE).eos_token_id
ORIGINAL = (
    (r"^language_model\.model\.", "model."),
    (r"^language_model\.lm_head", "lm_head"),
    (r"^vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
    (r"^multi_modal_projector\.linear_1", "model.mm_projector.0"),
    (r"^multi_modal_projector\.linear_2", "model.mm_projector.2"),
    (r"^image_newline", "model.image_newline"),
)
TOWER = "model.vision_tower.vision_tower."


def original_tensors() -> dict[str, Tensor]:
    """The stock model's tensors under the names that the authors' code saves them by."""
    renamed = {}
    for name, tensor in load_file(SOURCE / "model.safetensors").items():
        for old, new in ORIGINAL:
            name, changed = re.subn(old, new, name)
            if changed:
                break
        renamed[name] = tensor
    return renamed


def original_settings() -> dict[str, Any]:
    """A config.json as the authors' code writes it: Qwen2's keys and LLaVA's side by side."""
    there = json.loads((SOURCE / "config.json").read_text())
    return {
        **{name: value for name, value in there["text_config"].items() if name != "dtype"},
        "model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"], "torch_dtype": "float32",
        "mm_vision_tower": "someone/tiny-siglip", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
        "image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": there["image_grid_pinpoints"],
        "mm_spatial_pool_mode": "average", "mm_newline_position": "grid", "tie_word_embeddings": False,
    }  # fmt: skip


def save_siglip(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """The encoder's own directory: one more layer, a pooling head, and a text half."""
    folder.mkdir()
    sizes = json.loads((SOURCE / "config.json").read_text())["vision_config"]
    whole = {**sizes, "num_hidden_layers": sizes["num_hidden_layers"] + 1, "vision_use_head": True}
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": whole}))
    own = {name.removeprefix(TOWER): tensor for name, tensor in tensors.items() if name.startswith(TOWER)}
    last = "vision_model.encoder.layers.2."
    more = {name.replace(last, "vision_model.encoder.layers.3."): own[name] + 1 for name in own if last in name}
    sides = {"vision_model.head.probe": torch.ones(3), "text_model.x": torch.ones(3), "logit_scale": torch.ones(1)}
    save_file({**own, **more, **sides}, folder / "model.safetensors")
    return folder


def save_tokenizer(folder: Path) -> None:
    """A Qwen2's tokenizer: the tiny one without the marks of videos and images, and without a template."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny.folder("qwen2") / name, folder / name)


def save_original(folder: Path, tensors: Mapping[str, Tensor], **settings: Any) -> Path:
    """A checkpoint in two files with an index, as published."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**original_settings(), **settings}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END]}))
    save_tokenizer(folder)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name].contiguous() for name in part}, folder / file)
    index = {name: file for file, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def run(*words: object) -> int:
    return main([*map(str, words)])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual case: a whole checkpoint; the encoder's directory tells its sizes. Files of 150 kB."""
    place = tmp_path_factory.mktemp("convert")
    tensors = original_tensors()
    original = save_original(
        place / "original", {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    )
    vision = save_siglip(place / "siglip", {name: tensor * 0 for name, tensor in tensors.items()})
    assert run(original, place / "new", "--vision", vision, "--shard-gb", "1.5e-4") == 0
    return place / "new"


def video_inputs() -> dict[str, Tensor]:
    """A prompt with a video of two frames: 4 x 4 patches of 8, pooled to 2 x 2, and a newline."""
    ids = torch.tensor([[5, 6, *[VIDEO] * (2 * 4 + 1), 7, 8]])
    dice = torch.Generator().manual_seed(0)
    return {"input_ids": ids, "pixel_values_videos": torch.rand(1, 2, 3, 32, 32, generator=dice)}


@torch.no_grad()
def logits(folder: str | Path) -> Tensor:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    return model(**video_inputs()).logits


def test_the_converted_model_is_the_one_it_was_made_from(converted: Path) -> None:
    assert len(list(converted.glob("model-*.safetensors"))) > 2
    assert all(file.stat().st_size < 160_000 for file in converted.glob("model-*.safetensors"))
    assert torch.equal(logits(converted), logits(stock.folder("llava_video")))


def test_the_report_accounts_for_every_tensor(converted: Path) -> None:
    report = json.loads((converted / REPORT).read_text())
    assert len(report["taken"]) == len(load_file(SOURCE / "model.safetensors"))
    assert report["taken"]["image_newline"].endswith("safetensors: model.image_newline")
    assert report["dropped"] == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": "rotary frequencies are computed",
    }


@pytest.mark.parametrize("settings", [{"grid": "onevision"}, {"grid": "authors"}])
def test_the_backbone_reads_videos_with_it_as_before(converted: Path, settings: dict) -> None:
    before = backbones.build("llava_video", source=stock.folder("llava_video"), **settings)
    after = backbones.build("llava_video", source=str(converted), **settings)
    after.video_processor.image_mean = before.video_processor.image_mean  # the tiny stock model states none
    after.video_processor.image_std = before.video_processor.image_std
    one, other = (backbone.features_of([stock.clip()])[0].projected[0].values for backbone in (before, after))
    assert torch.equal(one, other)


def test_the_directory_is_complete_for_the_backbone(converted: Path) -> None:
    backbone = backbones.build("llava_video", source=str(converted))
    assert backbone.video_processor.size == {"height": 32, "width": 32}
    assert [*backbone.video_processor.image_mean, *backbone.image_processor.image_std] == [0.5] * 6
    assert backbone.end_ids == [END]
    media = [stock.clip()]
    prompt = backbone.prompt(stock.conversation(media), media=backbone.features_of(media))
    assert backbone.tokenizer.decode(prompt.ids[-3:]) == "<|im_start|>assistant\n"
    assert len(prompt.slots) == 1


def test_the_stock_processor_loads_and_counts_tokens(converted: Path) -> None:
    processor: Any = LlavaOnevisionProcessor.from_pretrained(converted)
    text = processor.apply_chat_template(stock.conversation([stock.clip()]), add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<video>\n")
    found = processor(text=[text], videos=[stock.clip().pixels], return_tensors="pt")
    assert int((found["input_ids"] == VIDEO).sum()) == 8 * 4 + 1


def test_the_parts_stand_in_for_what_the_checkpoint_lacks(tmp_path: Path) -> None:
    tensors = original_tensors()
    vision = save_siglip(tmp_path / "siglip", tensors)
    of_language = ("model.layers.", "model.embed_tokens", "model.norm", "lm_head")
    language = tmp_path / "qwen2"
    language.mkdir()
    save_file({n: t for n, t in tensors.items() if n.startswith(of_language)}, language / "model.safetensors")
    save_tokenizer(language)
    own = {n: t for n, t in tensors.items() if not n.startswith((*of_language, TOWER))}
    original = save_original(tmp_path / "original", own)
    (original / "tokenizer_config.json").unlink()
    assert run(original, tmp_path / "new", "--vision", vision, "--language", language) == 0
    assert torch.equal(logits(tmp_path / "new"), logits(stock.folder("llava_video")))
    dropped = json.loads((tmp_path / "new" / REPORT).read_text())["dropped"]
    last = [name for name, reason in dropped.items() if reason == "LLaVA leaves out the encoder's last layer"]
    assert len(last) == 16
    assert len(dropped) == 16 + 3


def test_weights_are_written_in_the_type_that_the_settings_state(tmp_path: Path) -> None:
    tensors = original_tensors()
    original = save_original(tmp_path / "original", tensors, torch_dtype="bfloat16")
    vision = save_siglip(tmp_path / "siglip", tensors)
    assert run(original, tmp_path / "new", "--vision", vision) == 0
    written = load_file(tmp_path / "new" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert torch.equal(written["image_newline"], tensors["model.image_newline"].bfloat16())
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "new").dtype == torch.bfloat16


def test_a_tied_head_is_left_out(tmp_path: Path) -> None:
    tensors = original_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    original = save_original(tmp_path / "original", tensors, tie_word_embeddings=True)
    vision = save_siglip(tmp_path / "siglip", tensors)
    assert run(original, tmp_path / "new", "--vision", vision) == 0
    report = json.loads((tmp_path / "new" / REPORT).read_text())
    assert report["dropped"] == {"lm_head.weight": "the head is tied to the embeddings"}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "new")
    assert torch.equal(model.get_output_embeddings().weight, tensors["model.embed_tokens.weight"])


def broken(place: Path, change, **settings: Any) -> int:
    """Convert a checkpoint after `change` of its tensors."""
    tensors = original_tensors()
    change(tensors)
    original = save_original(place / "original", tensors, **settings)
    return run(original, place / "new", "--vision", save_siglip(place / "siglip", original_tensors()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
         "1 missing: language_model.model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.pop(f"{TOWER}vision_model.post_layernorm.bias"),
         "1 missing: vision_tower.vision_model.post_layernorm.bias"),
        (lambda t: t.pop("model.image_newline"), "1 missing: image_newline"),
        (lambda t: t.update({"model.layers.7.mlp.up_proj.weight": torch.ones(1)}),
         "1 unknown: model.layers.7.mlp.up_proj.weight"),
        (lambda t: t.update({"model.vision_resampler.query": torch.ones(1)}),
         "1 unknown: model.vision_resampler.query"),
        (lambda t: t.update({"model.mm_projector.0.bias": torch.ones(5)}),
         "1 of another shape: model.mm_projector.0.bias: (5,), not (64,)"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, capsys, change, said: str) -> None:
    assert broken(tmp_path, change) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "qwen2", "architectures": None}, "is a 'qwen2' model; a 'llava_qwen' one is converted"),
        ({"model_type": "llava_onevision", "architectures": None}, "It is converted already."),
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear'; LLaVA-OneVision of transformers has mlp2x_gelu"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio='pad'"),
        ({"vocab_size": VIDEO}, f"would be tokens {IMAGE} and {VIDEO}, but the model has rows for {VIDEO} tokens"),
    ],
)
def test_settings_that_no_stock_model_has_are_refused(tmp_path: Path, capsys, settings: dict, said: str) -> None:
    assert broken(tmp_path, dict, **settings) == 2
    assert said in capsys.readouterr().err


def test_files_that_are_absent_are_told(tmp_path: Path, capsys) -> None:
    original = save_original(tmp_path / "original", original_tensors())
    assert run(original, tmp_path / "new") == 2
    assert "The sizes of the encoder 'someone/tiny-siglip' are not known here" in capsys.readouterr().err
    vision = save_siglip(tmp_path / "siglip", original_tensors())
    second = original / "model-00002-of-00002.safetensors"
    second.rename(tmp_path / "elsewhere")
    assert run(original, tmp_path / "new", "--vision", vision) == 2
    assert "lacks model-00002-of-00002.safetensors" in capsys.readouterr().err
    whole = (tmp_path / "elsewhere").read_bytes()
    second.write_bytes(whole[: len(whole) // 2])  # a download that broke off
    assert run(original, tmp_path / "new", "--vision", vision) == 2
    assert "model-00002-of-00002.safetensors is no whole safetensors file" in capsys.readouterr().err
    for file in original.glob("*.safetensors"):
        file.unlink()
    (original / "model.safetensors.index.json").unlink()
    (original / "pytorch_model.bin").write_bytes(b"")
    assert run(original, tmp_path / "new", "--vision", vision) == 2
    assert "pytorch_model.bin is no whole file of weights" in capsys.readouterr().err
    (original / "tokenizer_config.json").unlink()
    assert run(original, tmp_path / "new", "--vision", vision) == 2
    assert "give the directory of its Qwen2: --language DIR" in capsys.readouterr().err
    assert run(original, original) == 2
    assert "exists already" in capsys.readouterr().err


def test_an_interrupted_conversion_leaves_no_directory(tmp_path: Path, monkeypatch) -> None:
    original = save_original(tmp_path / "original", original_tensors())
    vision = save_siglip(tmp_path / "siglip", original_tensors())
    words = (original, tmp_path / "new", "--vision", vision)
    with monkeypatch.context() as patched:
        patched.setattr("langdc.convert.llava_video.save_file", _interrupted)
        assert run(*words) == 130
    assert not (tmp_path / "new").exists()
    assert run(*words) == 0
    assert not (tmp_path / "new.partial").exists()


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_published_encoder_needs_no_directory() -> None:
    """Its sizes, less the last layer, are the ones that transformers' own LLaVA-OneVision has by default."""
    found = _vision_sizes({"mm_vision_tower": "google/siglip-so400m-patch14-384"}, None)
    expected = LlavaOnevisionConfig().vision_config.to_dict()
    assert {name: expected[name] for name in found} == found
    assert found["num_hidden_layers"] == 26


def test_pinpoints_are_written_out() -> None:
    assert _image_sizes([[384, 768]], 384) == [[384, 768]]
    assert _image_sizes("(1x1),...,(6x6)", 384) == LlavaOnevisionConfig().image_grid_pinpoints
    with pytest.raises(ValueError, match="it is a list of sizes"):
        _image_sizes(None, 384)


def test_the_backbone_that_the_model_was_trained_as_is_told() -> None:
    assert _trained_as({"mm_spatial_pool_mode": "average", "mm_newline_position": "grid"}) == "llava_video"
    assert _trained_as({"mm_spatial_pool_mode": "bilinear", "mm_newline_position": "grid"}) == "llava_video"
    assert _trained_as({}) == "llava_onevision"
    assert _trained_as({"mm_spatial_pool_mode": "bilinear", "mm_newline_position": "one_token"}) == "llava_onevision"


def test_a_tokenizer_of_words_and_merges_gets_the_marks_after_its_own(tmp_path: Path) -> None:
    """As published: vocab.json, merges.txt and no tokenizer.json, beside a config.json of an unknown model type."""
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠ")}
    added = {27: "<|endoftext|>", 28: "<|im_start|>", 29: "<|im_end|>"}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    told = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    plain = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
    listed = {str(number): {"content": text, "special": True, **plain} for number, text in added.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**told, "added_tokens_decoder": listed}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_qwen"}))
    tokenizer = _load_tokenizer([tmp_path])
    assert tokenizer.convert_tokens_to_ids(["<|im_end|>", "<image>", "<video>"]) == [29, 30, 31]
    assert tokenizer("ab<video>c")["input_ids"] == [0, 1, 31, 2]
    tokenizer.chat_template = chat_template("llava_video")
    tokenizer.save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "config.json").write_text(json.dumps({"model_type": "llava_onevision"}))
    assert language_models.load_tokenizer(tmp_path / "new")("ab<video>c")["input_ids"] == [0, 1, 31, 2]
