"""Hostile models, pages and keys, as SECURITY.md says."""

import json
import pickle
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
import yaml

from langdc import checkpoint, configfiles
from langdc.backbones import backbones
from langdc.config import check
from langdc.endpoint import Endpoint, EndpointError
from langdc.evaluate.settings import JudgeConfig
from langdc.language_models import load_tokenizer, open_tokenizer, templated
from langdc.modelfiles import read_tensors
from tests import stock
from tests.evaluate import runs
from tests.security import PAGES, SOURCES, calls, connect, keywords, sentence

# ---- models


class Evil:
    """Runs code where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return Path.touch, (self.place,)


@sentence("Weights are read as safetensors")
def test_no_pickle_runs_code(tmp_path: Path) -> None:
    file, evil = tmp_path / "w.bin", {"x": Evil(tmp_path / "ran")}
    with tarfile.open(tmp_path / "old.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    writers = {
        "would run on loading, such as ": lambda: torch.save(evil, file),
        "would run on loading": lambda: file.write_bytes(pickle.dumps(evil, protocol=2)),
        "only running code can read": lambda: (tmp_path / "old.tar").rename(file),
    }
    for said, write in writers.items():
        write()
        with pytest.raises(ValueError, match=said) as caught:
            read_tensors(file)
        assert not re.search("weights_only|two options|likely succeed|\x1b", str(caught.value)), "torch's advice"
        assert not (tmp_path / "ran").exists()
    for path in SOURCES:
        for name, call in calls(path):
            given = keywords(call)
            assert name != "torch.load" or given.get("weights_only") == "True", path
            assert not re.fullmatch(r"(\w+\.)*(cPickle|pickle|dill|joblib|marshal|shelve)\.\w+|.*read_pickle", name), (
                path
            )
            assert "allow_pickle" not in given and name not in ("eval", "exec", "__import__"), path
            assert name != "yaml.load" or path.name == "configfiles.py", path
    assert issubclass(configfiles._Loader, yaml.SafeLoader)


def with_code(folder: Path, ran: Path, **config: object) -> Path:
    """The folder of a model with code in it, which its settings name."""
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass C: pass\ndef generate(*a, **k): pass\n"
    (folder / "custom_generate").mkdir()
    for name in ("evil.py", "custom_generate/generate.py"):
        (folder / name).write_text(code)
    names = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer"), "evil.C")
    for file, more in (("config.json", config), ("tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"})):
        tree = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
        (folder / file).write_text(json.dumps({**tree, **more, "auto_map": names, "custom_generate": "evil"}))
    return folder


@sentence("Code in a model's folder")
def test_code_of_a_folder_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *words: [*map(asked.append, words), "yes"][-1])
    ran = tmp_path / "ran"
    known = with_code(shutil.copytree(stock.folder("qwen2_5_vl"), tmp_path / "known"), ran)
    assert open_tokenizer(known) and checkpoint.open_model(known)  # by transformers' own code, which knows the type
    other = with_code(shutil.copytree(stock.folder("qwen2_5_vl"), tmp_path / "other"), ran, model_type="evil")
    with pytest.raises(ValueError):
        checkpoint.open_model(other)
    with pytest.raises(ValueError):
        backbones.build("qwen2_5_vl", source=str(other))
    assert not asked and not ran.exists()


@sentence("Nothing in a checkpoint's folder is imported")
def test_a_class_of_a_checkpoint_is_not_looked_for_in_its_folder(tmp_path: Path) -> None:
    folder = with_code(runs.save_model(tmp_path / "model", "pool"), tmp_path / "ran")
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    for name, said in (("evil:C", "cannot be imported"), ("os:system", "no subclass"), ("subprocess:Popen", "no sub")):
        manifest["model"]["compressor"]["name"] = name
        (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=said):
            checkpoint.load(folder)
    assert not (tmp_path / "ran").exists()


@sentence("Chat templates run in the sandbox")
def test_a_template_reaches_nothing_of_python(tmp_path: Path) -> None:
    import jinja2.exceptions

    folder = shutil.copytree(stock.folder("qwen2_5_vl"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__base__.__subclasses__() }}")
    with pytest.raises((ValueError, jinja2.exceptions.SecurityError)):
        text = open_tokenizer(folder).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        raise AssertionError(text)


@sentence("**The time that a chat template takes.**")
@pytest.mark.parametrize("many", ["range(100001)", "range(10**9)", "range(0, 10**12, 10**9)", "'a' * 10000001"])
def test_a_template_does_not_count_far(tmp_path: Path, many: str) -> None:
    folder = shutil.copytree(stock.folder("qwen2_5_vl"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(f"{{% for each in {many} %}}x{{% endfor %}}")
    with pytest.raises(ValueError, match="chat template"):
        templated(load_tokenizer(str(folder)), [{"role": "user", "content": "x"}], True)


# ---- pages


@sentence("What a page shows is escaped")
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_pages_load_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    if "<!doctype html>" in text:  # others are parts of pages
        assert policy and policy[1].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert not re.search(r"https?://|//\w+\.|url\(|@import|<(link|iframe|object|embed|form|base)\b| safe\b", text)


def test_every_template_is_rendered_with_escapes() -> None:
    found = [(path, keywords(call)) for path in SOURCES for name, call in calls(path) if name == "Environment"]
    ways = {path.name: given.get("autoescape") for path, given in found}
    assert ways == {"language_models.py": None, "text.py": "name.endswith('.html')"}  # the first only parses


# ---- secrets


@sentence("The key of an endpoint is read from the environment")
def test_the_key_is_shown_nowhere(endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-123")
    other = endpoint("hi")
    for status in (301, 302, 303, 307, 308):
        server = endpoint((status, b"secret-123", {"Location": f"{other.url}?key=secret-123"}))
        with pytest.raises(EndpointError, match=f"HTTP {status}") as error:
            connect(server.url, key_variable="SOME_KEY").ask([])
        assert "secret" not in str(error.value) and other.headers == []
        assert server.headers[0]["Authorization"] == "Bearer secret-123"
    config = check(JudgeConfig, {"url": other.url, "model": "tiny", "key_variable": "SOME_KEY"}, "test")
    assert "secret" not in f"{config!r} {config.model_dump_json()} {Endpoint(config)!r}"


@sentence("A config with a password in the url")
@pytest.mark.parametrize("url", ["https://me:secret@server/v1", "https://server/v1?key=secret"])
@pytest.mark.parametrize("key", [None, "secret", "sk-SECRET", "SECRET KEY"])
def test_a_key_in_a_config_is_refused_unseen(url: str, key: str | None) -> None:
    url = "https://server/v1" if key else url
    with pytest.raises(ValueError, match="key_variable") as error:
        connect(url, key_variable=key)
    assert "secret" not in str(error.value).lower()
