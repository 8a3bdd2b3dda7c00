"""Model folders of others: read as transformers reads them, or refused in one sentence with the file's name."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, CLIPConfig, CLIPModel

from langdc import VideoLM, checkpoint, cli
from langdc.backbones import backbones
from langdc.config import LoraConfig, check
from langdc.encoders import encoders
from langdc.language_models import load_language_model, load_tokenizer, templated
from langdc.sources import resolve

WEIGHTS, BIN, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
PIECES = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
MESSAGES = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what is it ?"}]}]


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """Copies of the folders of tiny and packaged models."""

    def make(source: str) -> Path:
        return Path(shutil.copytree(Path(str(resolve(source))), tmp_path / source.replace(":", "-")))

    return make


def edit(file: Path, **changes: Any) -> dict:
    settings = {**(json.loads(file.read_text()) if file.is_file() else {}), **changes}
    file.write_text(json.dumps(settings))
    return settings


def change(folder: Path, edited: Callable[[dict], object]) -> None:
    """Change the tensors of a folder."""
    tensors = load_file(folder / WEIGHTS)
    edited(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def pickled(folder: Path, tensors: Any = None) -> None:
    """Put .bin in place of safetensors."""
    torch.save(load_file(folder / WEIGHTS) if tensors is None else tensors, folder / BIN)
    (folder / WEIGHTS).unlink()


def pickled_in_pieces(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    for number, piece in enumerate(PIECES):
        torch.save({name: tensors[name] for name in names[number::2]}, folder / piece)
    listed = {name: PIECES[number % 2] for number, name in enumerate(names)}
    (folder / f"{BIN}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))


def as_published_in_2024(folder: Path) -> None:
    """Qwen2-VL's first layout: settings of the language model at the top, and older names of settings and tensors."""
    settings = json.loads((folder / "config.json").read_text())
    settings = {**settings.pop("text_config"), **settings, "rope_theta": 10000.0, "torch_dtype": "float32"}
    settings["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    kept = {key: value for key, value in settings.items() if key not in ("rope_parameters", "dtype")}
    (folder / "config.json").write_text(json.dumps(kept))
    tensors = load_file(folder / WEIGHTS)
    older = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in tensors.items()
    }
    save_file(older, folder / WEIGHTS, {"format": "pt"})


def doubled(tensors: dict) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def head_alone(tensors: dict) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def with_frequencies(tensors: dict) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)


FORMATS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "tied": ("tiny:qwen2", lambda folder: None),
    "tied, both written": ("tiny:qwen2", lambda folder: change(folder, doubled)),
    "tied, the head written": ("tiny:qwen2", lambda folder: change(folder, head_alone)),
    "frequencies of old": ("tiny:qwen2", lambda folder: change(folder, with_frequencies)),
    "one pickle": ("tiny:qwen2", pickled),
    "pickles": ("tiny:qwen2", pickled_in_pieces),
    "a pickled video model": ("tiny:qwen2_5_vl", pickled),
    "old names": ("tiny:qwen2_vl", as_published_in_2024),
    "untied": ("tiny:llava_onevision", lambda folder: None),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_is_read_as_transformers_reads_it(copy: Callable[[str], Path], kind: str):
    source, prepare = FORMATS[kind]
    folder = copy(source)
    prepare(folder)
    if source == "tiny:qwen2":
        found, stock = load_language_model(str(folder)), AutoModelForCausalLM.from_pretrained(folder)
    else:
        found = VideoLM.from_pretrained(folder).model.backbone.language_model
        stock = AutoModelForImageTextToText.from_pretrained(folder)
        assert backbones.build(source.removeprefix("tiny:"), source=str(folder), text=False) is not None
    ours, theirs = found.state_dict(), stock.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_folder_of_the_cache_stands_for_its_snapshot(copy: Callable[[str], Path], tmp_path: Path):
    cached = tmp_path / "models--Qwen--Tiny"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0123abcd\n")
    copy("tiny:qwen2").rename(cached / "snapshots/0123abcd")
    assert resolve(str(cached)) == cached / "snapshots/0123abcd"


def test_the_vision_half_of_a_whole_clip(tmp_path: Path):
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = json.loads((Path(str(resolve("sample:clip"))) / "config.json").read_text())
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)).save_pretrained(tmp_path)
    assert encoders.build("image", source=str(tmp_path)) is not None


# ---- refused


def wider(**changes: Any) -> Callable[[Path], object]:
    def edited(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        edit(folder / "config.json", text_config={**settings["text_config"], **changes})

    return edited


def only(folder: Path, *names: str) -> None:
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink()


def peft_folder(folder: Path) -> None:
    only(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Base"}')
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")


def compressed(folder: Path) -> None:
    pickled(folder)
    with zipfile.ZipFile(folder / BIN) as whole:
        entries = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(folder / BIN, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)


class Code:
    def __reduce__(self) -> tuple:
        return pytest.fail, ("the pickle ran",)


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def drop(part: str) -> Callable[[Path], object]:
    return lambda folder: change(folder, lambda t: [t.pop(name) for name in list(t) if part in name])


def cast(folder: Path, dtype: torch.dtype) -> None:
    """Hold the weights of products in another type."""
    change(folder, lambda t: t.update({n: v.to(dtype) for n, v in t.items() if n.endswith("proj.weight")}))


QUANTISED = "holds quantised weights that this loader does not know"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a list": (write("config.json", "[]"), "config.json holds a list, not an object of settings"),
    "a number": (write("config.json", "5"), "config.json holds a int"),
    "no type": (write("config.json", "{}"), "is a None model; no backbone serves it"),
    "sub-settings": (lambda f: edit(f / "config.json", text_config=5), "config.json: transformers"),
    "default sizes": (lambda f: edit(f / "config.json", text_config={}), "config.json describes a model of"),
    "no heads": (wider(num_attention_heads=0), "ZeroDivisionError"),
    "words for numbers": (wider(hidden_size="64"), "expected int, got str"),
    "endless depth": (
        lambda f: edit(f / "config.json", vision_config={"model_type": "qwen2_5_vl", "depth": 10**9}),
        "depth is 1000000000, but there are 81 tensors in all",
    ),
    "tokenizer": (write("tokenizer.json", "{}"), "cannot make a tokenizer of it"),
    "no vocabulary": (
        lambda f: (f / "tokenizer.json").unlink(),
        "holds no tokenizer (no tokenizer.json, nor vocab.json and merges.txt, nor *.model)",
    ),
    "empty vocabulary": (
        lambda f: (
            (f / "tokenizer.json").unlink(),
            write("vocab.json", "{}")(f),
            write("merges.txt", "#version: 0.2")(f),
        ),
        "the vocabulary is empty",
    ),
    "tokenizer's settings": (write("tokenizer_config.json", "[]"), "tokenizer_config.json holds a list"),
    "generation": (write("generation_config.json", "null"), "generation_config.json holds a NoneType"),
    "template file": (write("chat_template.json", '{"chat_template": 5}'), "chat_template is a int, not a text"),
    "preprocessor": (write("processor_config.json", "[]"), "processor_config.json holds a list"),
    "a layer": (drop("layers.1."), "12 missing: model.language_model.layers.1.input_layernorm.weight; "),
    "layers": (drop(".layers."), "36 missing: model.language_model.layers.{0,1,2}.input_layernorm.weight; "),
    "the encoder": (drop("visual.blocks.0.norm1"), "1 missing: model.visual.blocks.0.norm1.weight."),
    "a layer more": (
        lambda f: change(f, lambda t: t.update({"model.layers.7.mlp.up_proj.weight": torch.ones(1)})),
        "1 of layers that config.json does not state: model.language_model.layers.7.mlp.up_proj.weight",
    ),
    "shape": (
        lambda f: change(f, lambda t: t.update({"model.norm.weight": torch.ones(0, 10**18)})),
        "1 of another shape: model.language_model.norm.weight: (0, 1000000000000000000), not (64,)",
    ),
    "adapter": (peft_folder, "holds an adapter alone. Merge it into the model that it was trained on (Qwen/Base)"),
    "adapter of nothing": (
        lambda f: (peft_folder(f), edit(f / "adapter_config.json", base_model_name_or_path=None)),
        "it was trained on (its base is not named)",
    ),
    "int8": (lambda f: cast(f, torch.int8), QUANTISED),
    "uint8": (lambda f: cast(f, torch.uint8), QUANTISED),
    "int32": (lambda f: cast(f, torch.int32), QUANTISED),
    "fp8": (lambda f: cast(f, torch.float8_e4m3fn), QUANTISED),
    "pickled int8": (lambda f: (cast(f, torch.int8), pickled(f)), QUANTISED),
    "scales": (
        lambda f: change(f, lambda t: t.update({"model.norm.weight_scale_inv": torch.ones(1)})),
        f"{QUANTISED} (model.norm.weight_scale_inv; 1 in all)",
    ),
    "quantised settings": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "fp8"}),
        f"{QUANTISED} (quantization_config; 1 in all)",
    ),
    "adapter within": (
        write("adapter_config.json", '{"base_model_name_or_path": "Qwen/Base"}'),
        "holds an adapter beside whole weights",
    ),
    "index of other folders": (
        lambda f: ((f / WEIGHTS).unlink(), write(INDEX, '{"weight_map": {"a": "../a.safetensors"}}')(f)),
        f"{INDEX} holds no weight_map from tensors to files beside it",
    ),
    "index gone": (
        lambda f: (f / WEIGHTS).rename(f / "model-00001-of-00001.safetensors"),
        "holds no weights: neither model.safetensors nor pytorch_model.bin, nor their index with shards",
    ),
    "link": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to("../blobs/1")),
        "model.safetensors is a link to ../blobs/1, which is not there",
    ),
    "code": (lambda f: pickled(f, {"a": Code()}), "pytorch_model.bin is no plain file of tensors"),
    "cut pickle": (
        lambda f: (pickled(f), (f / BIN).write_bytes((f / BIN).read_bytes()[:5000])),
        "pytorch_model.bin is no whole file of weights",
    ),
    "pointer": (
        lambda f: (pickled(f), write(BIN, "version https://git-lfs.github.com/spec/v1\n")(f)),
        "pytorch_model.bin is a git-lfs pointer",
    ),
    "a tensor of 4 TB": (
        lambda f: pickled(f, {"a": torch.zeros(1).expand(10**6, 10**6)}),
        "states more values than it holds: 1 tensors, such as a of shape (1000000, 1000000)",
    ),
    "no values": (lambda f: pickled(f, {"a": torch.zeros(0, 10**18)}), "states more values than it holds: 1 tensors"),
    "compressed": (compressed, "its tensors are compressed"),
    "meta": (lambda f: pickled(f, {"a": torch.zeros(5, device="meta")}), "states more values than it holds"),
    "pickled list": (lambda f: pickled(f, [torch.ones(1)]), "holds a list; a mapping from names to tensors is needed"),
    "patches": (
        lambda f: (
            edit(f / "preprocessor_config.json", patch_size=14)
            and edit(f / "processor_config.json", image_processor=None, video_processor={"patch_size": 14})
        ),
        "its preprocessor settings state patch_size 14, its config.json 4",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_one_sentence(copy: Callable[[str], Path], sample_video: Path, capsys, kind: str):
    damage, said = REFUSED[kind]
    folder = copy("tiny:qwen2_5_vl")
    damage(folder)
    assert cli.main(["ask", str(sample_video), "what is it ?", "--model", str(folder)]) == 2
    err = capsys.readouterr().err
    assert said in err and str(folder) in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_language_models_and_encoders_name_what_they_lack(copy: Callable[[str], Path]):
    folder = copy("tiny:qwen2")
    edit(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"1 missing: lm_head\.weight"):
        load_language_model(str(folder))
    clip = copy("sample:clip")
    change(clip, lambda t: t.update({name: torch.ones(2) for name in t if name.endswith("pre_layrnorm.weight")}))
    with pytest.raises(ValueError, match=r"1 of another shape: .*pre_layrnorm.weight: \(2,\), not"):
        encoders.build("image", source=str(clip))
    video = copy("sample:internvideo2")
    change(video, lambda t: (t.pop("cls_token"), t.update(surprise=torch.ones(1))))
    with pytest.raises(ValueError, match=r"1 missing: cls_token\. 1 unknown: surprise"):
        encoders.build("internvideo2", source=str(video))
    edit(video / "config.json", depth=10**9)
    with pytest.raises(ValueError, match="depth is 1000000000, but there are"):
        encoders.build("internvideo2", source=str(video))


def test_a_trained_folder_that_lacks_tensors_is_refused(tmp_path: Path):
    """Its manifest fits the file, as after a mistake of whoever wrote both."""
    model = checkpoint.load("sample:langdc")
    lora = check(LoraConfig, checkpoint.read_manifest(checkpoint.locate("sample:langdc"))["lora"], "lora")
    own = checkpoint.own_tensors(model, checkpoint.saved_names("sample:langdc"))
    for number, part in enumerate(("post_projector.weight", "layers.0.self_attn.q_proj.lora_A")):
        gone = next(name for name in own if part in name)
        left = {name: tensor for name, tensor in own.items() if name != gone}
        checkpoint.save(model, tmp_path / str(number), tensors=left, lora=lora, info={})
        with pytest.raises(ValueError, match=f"1 missing: {re.escape(gone)}"):
            checkpoint.load(tmp_path / str(number))
        with pytest.raises(ValueError, match=f"1 missing: {re.escape(gone)}"):
            checkpoint.start(model.config, tmp_path / str(number))


def test_tensors_without_a_place_are_said(copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    from langdc import language_models

    said: list[str] = []
    monkeypatch.setattr(language_models.logger, "warning", lambda text, *words: said.append(text % words))
    folder = copy("tiny:qwen2")
    change(folder, lambda t: t.update({"value_head.weight": torch.ones(8)}))
    load_language_model(str(folder))
    assert len(said) == 1 and "value_head.weight" in said[0] and str(folder) in said[0]


def test_what_an_encoder_is_shown_is_never_guessed_silently(copy: Callable[[str], Path], monkeypatch):
    from langdc.backbones import stock
    from langdc.encoders import image

    said: list[str] = []
    for module in (stock, image):
        monkeypatch.setattr(module.logger, "warning", lambda text, *words: said.append(text % words))
    folder = copy("tiny:qwen2_5_vl")
    VideoLM.from_pretrained(folder).model.backbone.preprocessing  # noqa: B018
    assert said == []
    stated = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    older = {"min_pixels": 64, "max_pixels": 8192, **{key: stated[key] for key in ("image_mean", "image_std")}}
    (folder / "processor_config.json").unlink()
    edit(folder / "preprocessor_config.json", **older)  # as Qwen2.5-VL is published
    backbone: Any = VideoLM.from_pretrained(folder).model.backbone
    assert (backbone.video_processor.patch_size, backbone.video_processor.size["longest_edge"]) == (4, 8192)
    assert said == []
    (folder / "preprocessor_config.json").write_text("{}")
    assert VideoLM.from_pretrained(folder).model.backbone.preprocessing
    assert len(said) == 2 and all("size and image_mean and image_std" in each for each in said)
    clip = copy("sample:clip")
    (clip / "preprocessor_config.json").unlink()
    encoders.build("image", source=str(clip))
    assert "does not state image_mean and image_std" in said[2]


# ---- templates, adapters


def test_a_template_that_fails_or_writes_without_end_is_refused(copy: Callable[[str], Path]):
    folder = copy("tiny:qwen2_5_vl")
    for template, said in (
        (
            "{% for m in messages %}{{ 'say ' + m.content }}{% endfor %}",
            "cannot make text of these messages of it .TypeError",
        ),
        ("{{ raise_exception('only text') }}", "only text"),
        ("{% for", "TemplateSyntaxError"),
        ("{% set n = 9000000 %}{{ 'a' * n * 2 }}", "18000000 characters of 1 messages"),
        ("{{ 'a' * 10**9 }}", "computes powers or huge numbers"),
        ("{{ 'a' * 1000000000 }}", "computes powers or huge numbers"),
    ):
        (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(ValueError, match=said):
            templated(load_tokenizer(str(folder)), MESSAGES, reply_next=True)
