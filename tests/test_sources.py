"""Weights by name: from a folder, from the Hugging Face cache, offline; damaged files are named in one line."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from langdc import VideoLM, checkpoint, cli, sources
from langdc.config import ModelConfig, check
from langdc.language_models import _chat_template, load_tokenizer
from langdc.model import VideoModel
from langdc.sources import resolve
from tests import stock

REVISION = "0123456789abcdef0123456789abcdef01234567"
ID = "Qwen/Qwen2.5-VL-Tiny"
QUESTION = "what is in the video ?"


def lay_out(home: Path, folder: Path, name: str = ID) -> Path:
    """The cache of huggingface_hub with one model, whose files are links to blobs, as it lays it out itself."""
    place = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "refs").mkdir()
    (place / "refs/main").write_text(REVISION)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, place / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> Path:
    return stock.mp4(tmp_path_factory.mktemp("clips"), count=8, fps=4)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a network that must not be used."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path / "hf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Qwen2.5-VL with its tokenizer, in two files of weights."""
    place = tmp_path / "model"
    shutil.copytree(stock.folder("qwen2_5_vl"), place)
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, place / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, part in shards.items() for n in part}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


def test_an_id_is_found_in_the_cache_without_a_network(home: Path, folder: Path, mp4: Path):
    snapshot = lay_out(home, folder)
    assert resolve(ID) == snapshot
    lm = VideoLM.from_pretrained(ID, compressor={"name": "vidcom2", "keep": 0.5}, backbone={"frames": 4})
    here = VideoLM.from_pretrained(folder, compressor={"name": "vidcom2", "keep": 0.5}, backbone={"frames": 4})
    assert lm.ask(mp4, QUESTION, max_new_tokens=3).text == here.ask(mp4, QUESTION, max_new_tokens=3).text
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), here.model.parameters(), strict=True))


def test_a_config_names_its_backbone_by_id(home: Path, folder: Path):
    lay_out(home, folder)
    config = check(ModelConfig, {"backbone": ID, "compressor": {"name": "pool", "sides": [2]}}, "test")
    named = checkpoint.named(config)
    assert (named.backbone.name, named.backbone.settings["source"]) == ("qwen2_5_vl", ID)
    assert checkpoint.published(VideoModel(named)) == {"backbone.model": ID}


def test_an_id_that_is_not_there_says_how_to_get_it(home: Path, mp4: Path, capsys):
    assert cli.main(["ask", str(mp4), QUESTION, "--model", "Qwen/Nothing-1B"]) == 2
    said = capsys.readouterr().err
    for word in ("'Qwen/Nothing-1B'", str(home / "hub"), "HF_HUB_OFFLINE is set", "hf download Qwen/Nothing-1B"):
        assert word in said
    assert "Traceback" not in said


def test_an_id_is_fetched_without_pickles(home: Path, folder: Path, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked: list[dict] = []

    def fetch(name: str, **settings: object) -> str:
        asked.append(settings)
        if settings["local_files_only"]:
            raise FileNotFoundError("not cached")
        return str(folder)

    monkeypatch.setattr(sources, "snapshot_download", fetch)
    assert resolve(ID) == folder
    assert [each["local_files_only"] for each in asked] == [True, False]
    assert not [p for p in asked[1]["allow_patterns"] if p.endswith((".bin", ".pt", ".pth", ".py"))]


def test_what_the_hub_says_becomes_one_line(home: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def fail(name: str, **settings: object) -> str:
        raise RuntimeError("Name or service not known\nmore lines")

    monkeypatch.setattr(sources, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"not fetched \(Name or service not known\)") as caught:
        resolve(ID)
    assert "\n" not in str(caught.value)


def test_a_mistyped_path_is_not_asked_for_on_the_network(home: Path, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="the folder runs is here, so a path was meant"):
        resolve("runs/stage3")
    with pytest.raises(ValueError, match=r"There is no checkpoint directory '\./x/y/z'"):
        resolve("./x/y/z")


SHARD = "model-00002-of-00002.safetensors"


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def replaced(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def without_weights(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()


def only_an_adapter(folder: Path) -> None:
    without_weights(folder)
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Base"}')


def only_pickles(folder: Path) -> None:
    without_weights(folder)
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
DAMAGE = {
    "missing shard": (lambda folder: (folder / SHARD).unlink(), f"lacks {SHARD}"),
    "cut shard": (cut(SHARD, 3000), SHARD),
    "cut head": (cut(SHARD, 20), SHARD),
    "empty shard": (cut(SHARD, 0), SHARD),
    "git-lfs pointer": (replaced(SHARD, POINTER), f"{SHARD} is a git-lfs pointer"),
    "no weights": (without_weights, "holds no weights"),
    "adapter alone": (only_an_adapter, "holds an adapter alone. Merge it into the model that it was trained on (Qwen/"),
    "pickles": (only_pickles, "num_hidden_layers is 3, but there are 1 tensors in all"),
    "cut config": (cut("config.json", 15), "config.json is not valid JSON"),
    "nested config": (replaced("config.json", "[" * 100_000), "config.json is not valid JSON"),
    "cut index": (cut("model.safetensors.index.json", 40), "model.safetensors.index.json is not valid JSON"),
    "cut tokenizer": (cut("tokenizer.json", 1000), "tokenizer.json is not valid JSON"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_weights_are_named_in_one_line(folder: Path, mp4: Path, capsys, kind: str):
    damage, said = DAMAGE[kind]
    damage(folder)
    assert cli.main(["ask", str(mp4), QUESTION, "--model", str(folder)]) == 2
    err = capsys.readouterr().err
    assert said in err and str(folder) in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_an_encoder_without_weights_is_refused(tmp_path: Path):
    from langdc.encoders.image import ImageEncoder

    shutil.copytree(resolve("sample:clip"), tmp_path / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match="holds no weights"):
        ImageEncoder(str(tmp_path / "clip"))


def test_the_template_of_the_processor_goes_before_that_of_the_tokenizer(folder: Path):
    """Text templates join strings, and fail where the content of a message is a list with a video."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "text: {{ messages }}"}))
    assert _chat_template(folder) is None
    assert load_tokenizer(str(folder)).chat_template == "text: {{ messages }}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "with videos"}))
    assert load_tokenizer(str(folder)).chat_template == "with videos"


def test_a_folder_without_preprocessor_settings_is_warned_of(tmp_path: Path, monkeypatch):
    from langdc.backbones import stock as module

    folder = tmp_path / "model"
    shutil.copytree(stock.folder("qwen2_5_vl"), folder)
    for name in module.PREPROCESSOR_FILES:
        (folder / name).unlink(missing_ok=True)
    said: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda text, *words: said.append(text % words))
    lm = VideoLM.from_pretrained(folder)
    assert lm.model.backbone.video_processor is not None
    assert said and "preprocessor_config.json" in said[0] and str(folder) in said[0]
