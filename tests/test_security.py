"""SECURITY.md: every sentence has a test, here or in the files beside this one; paths, files, and what is trusted."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from langdc import checkpoint, cli, jsonl
from langdc.config import MemberConfig, RunConfig, load
from langdc.data.records import Record, check_media, read_records
from langdc.endpoint import EndpointError
from langdc.evaluate.judge import Verdict
from langdc.evaluate.tasks import build_task
from langdc.prepare.rows import read
from langdc.train import chain, output
from tests import stock, test_security_media, test_security_models
from tests.security import DEEP, ROOT, SOURCES, TESTED, calls, connect, film, keywords, sentence


def sentences() -> list[str]:
    found = re.findall(r"^\* (.*(?:\n  .*)*)", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    return [" ".join(each.split()) for each in found]


def test_every_sentence_has_a_test() -> None:
    assert test_security_media and test_security_models  # which hold some of them
    assert len(sentences()) > 15
    assert [each for each in sentences() if not each.startswith(tuple(TESTED))] == []
    assert [begin for begin in TESTED if not any(each.startswith(begin) for each in sentences())] == []


# ---- paths


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder for records with a film in it, and one beside it."""
    film(tmp_path / "data" / "in.mp4")
    film(tmp_path / "out.mp4")
    (tmp_path / "data" / "link.mp4").symlink_to(tmp_path / "out.mp4")
    (tmp_path / "data" / "linked").symlink_to(tmp_path)
    frames = tmp_path / "data" / "frames"
    frames.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (frames / "1.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data-2").mkdir()
    film(tmp_path / "data-2" / "out.mp4")
    return tmp_path / "data"


OUTSIDE = ("../out.mp4", "{top}/out.mp4", "link.mp4", "linked/out.mp4", "../data-2/out.mp4", "frames")


def records(data: Path, name: str, **more: object) -> Path:
    fps = {"fps": 1.0} if name == "frames" else {}
    asked = {"kind": "what", "question": "what ?", "answer": "this"}
    line = {"id": "r", "video": name.format(top=data.parent), "questions": [asked], **fps, **more}
    (data / "mine.jsonl").write_text(json.dumps(line) + "\n")
    return data / "mine.jsonl"


@sentence("The path of a medium in a record stays inside the folder")
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leads_outside_is_refused(data: Path, name: str) -> None:
    file = records(data, name)
    with pytest.raises(ValueError, match=r"(?s)leads outside the folder.*--allow-outside.*line 1 \(id 'r'\)"):
        check_media(file, read_records(file))
    assert check_media(file, read_records(file), allow_outside=True)
    task = MemberConfig(name="records", data=str(file))  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="leads outside the folder"):
        (strict := build_task(task, False)).path(strict.records[0])
    assert (free := build_task(task, True)).path(free.records[0]).exists()


@pytest.mark.parametrize("name", ["in.mp4", "./in.mp4", "../data/in.mp4", "{top}/data/in.mp4", "linked/data/in.mp4"])
def test_a_path_that_stays_inside_is_read(data: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = records(data, name)
    assert check_media(file, read_records(file))
    monkeypatch.chdir(data)
    assert check_media("mine.jsonl", read_records("mine.jsonl"))


@pytest.mark.parametrize("name", ["a\0b.mp4", "x" * 300 + ".mp4"])
def test_a_name_that_no_file_can_have_is_a_missing_file(data: Path, name: str) -> None:
    file = records(data, "in.mp4")
    with pytest.raises(ValueError, match=r"line \? \(id 'r'\): there is no file"):
        check_media(file, [Record(id="r", video=name)])


def test_links_of_a_snapshot_of_the_hub_are_inside(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--owner--name" / "snapshots" / "abc"
    (snapshot / "videos").mkdir(parents=True)
    blob = film(snapshot.parents[1] / "blobs" / "0123.mp4")
    (snapshot / "videos" / "v.mp4").symlink_to(os.path.relpath(blob, snapshot / "videos"))
    file = records(snapshot, "videos/v.mp4")
    assert check_media(file, read_records(file))
    (snapshot / "videos" / "w.mp4").symlink_to(film(tmp_path / "other.mp4"))
    with pytest.raises(ValueError, match="leads outside"):
        check_media(file, read_records(records(snapshot, "videos/w.mp4")))


def test_commands_allow_outside_by_one_option(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = records(data, "../out.mp4")
    assert cli.main(["data", "check", str(file), "--jobs", "1"]) == 1
    assert "outside, 1" in capsys.readouterr().out
    assert cli.main(["data", "check", str(file), "--jobs", "1", "--allow-outside"]) == 0
    assert "outside (warning), 1" in capsys.readouterr().out
    caption = [
        "data",
        "caption",
        str(file),
        "--teacher",
        "sample:langdc",
        "--captioner",
        "--out",
        str(data / "o.jsonl"),
    ]
    assert cli.main(caption) == 2
    assert "leads outside" in capsys.readouterr().err and not (data / "o.jsonl").exists()
    for more, code in ([], 2), (["--allow-outside"], 0):
        (data / "mine.yaml").write_text(f"extends: sample/langdc/stage3\ntrain: {{data: [{file}]}}")
        assert train(data / "mine.yaml", *more) == code
        assert ("leads outside" in capsys.readouterr().err) == bool(code)


def train(config: Path, *more: str) -> int:
    """One step of the sample's language model."""
    small = [f"output={config.parent / 'run'}", "start=null", "train.steps=1", "train.targets=none", "train.kinds=null"]
    return cli.main(["train", str(config), *small, *more])


def test_an_import_stays_inside_the_media(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"video": name.format(top=data.parent), "caption": "x"} for name in ("in.mp4", *OUTSIDE[:5])]
    (data / "rows.json").write_text(json.dumps(rows))
    out = data / "new" / "mine.jsonl"
    assert cli.main(["data", "import", str(data / "rows.json"), "--out", str(out)]) == 1
    assert "5 rows cannot be used" in capsys.readouterr().out
    assert [record.video for record in read_records(out)] == ["../in.mp4"]
    assert cli.main(["data", "import", str(data / "rows.json"), "--out", str(out), "--allow-outside"]) == 0
    assert len(read_records(out)) == 6


# ---- nesting, archives


@sentence("A line, config, JSON file or reply that is nested too deeply")
def test_deep_nesting_is_an_error_with_a_name(tmp_path: Path) -> None:
    file = tmp_path / "deep.jsonl"
    for deep in (DEEP, *('{"id": ' + "[" * depth + "]" * depth + "}" for depth in (200, 900, 2000, 90_000))):
        file.write_text(json.dumps({"id": "a"}) + "\n" + deep + "\n")
        with pytest.raises(ValueError, match=r"deep\.jsonl has 1 bad line\(s\):\n  line 2: "):
            read_records(file)
    for name in ("deep.yaml", "chain.yaml"):
        (tmp_path / name).write_text(f"a: {DEEP}")
        with pytest.raises(ValueError, match=rf"{name} is not valid YAML"):
            chain.read([tmp_path / name])
    with pytest.raises(ValueError, match="the value is not valid YAML"):
        load(RunConfig, "sample/langdc/stage1", [f"seed={DEEP}"])
    (tmp_path / "deep.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"deep\.json"):
        read(str(tmp_path / "deep.json"))
    model = shutil.copytree(stock.folder("qwen2_5_vl"), tmp_path / "model")
    (model / "config.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        checkpoint.open_model(model)


def test_a_deep_reply_is_asked_for_again(endpoint) -> None:
    server = endpoint((200, DEEP.encode()))
    with pytest.raises(EndpointError, match="its reply is no chat completion"):
        connect(server.url, retries=1, pause=0).ask([])
    assert len(server.requests) == 2
    with pytest.raises(ValueError, match="no verdict"):
        Verdict.read("{'pred': " + DEEP + "}")


@sentence("Archives are read member by member")
def test_a_tar_writes_nothing_by_its_names_and_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("secret")
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "png")
    with tarfile.open("set.tar", "w") as tar:
        for name in ("../../evil.png", str(tmp_path.parent / "evil2.png")):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("linked.txt")
            member.type, member.linkname = kind, str(tmp_path / "secret.txt")
            tar.addfile(member)
    before = set(tmp_path.parent.parent.glob("*.png"))
    assert cli.main(["data", "import", "set.tar", "--out", "out/mine.jsonl", "--request", "what ?"]) == 0
    made = [str(record.image) for record in read_records("out/mine.jsonl")]
    assert len(made) == 2 and all(name.startswith("mine_media/") and ".." not in name for name in made)
    assert set(tmp_path.parent.parent.glob("*.png")) == before and not (tmp_path.parent / "evil2.png").exists()
    assert not any("secret" in path.read_text(errors="replace") for path in Path("out").rglob("*") if path.is_file())
    with tarfile.open("bomb.tar", "w") as tar:
        member = tarfile.TarInfo("a.png")
        member.size = 1 << 40
        tar.fileobj.write(member.tobuf())  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(ValueError, match=r"a\.png takes 1,099,511,627,776 bytes"):
        list(read("bomb.tar")[1])


# ---- what is trusted


@sentence("**Configs are code.**")
def test_a_config_imports_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from langdc.compressors import compressors

    (tmp_path / "imported_by_name.py").write_text("from langdc.compressors.plain import *")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="cannot be imported"):
        compressors.get("imported_by_name:Nothing")
    assert "imported_by_name" in sys.modules


@sentence("**The folder of a run is yours.**")
def test_a_run_with_files_of_another_user_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = tmp_path / "run" / output.RESUME / "checkpoint-1"
    states.mkdir(parents=True)
    for name in (output.COMPLETE, "states.pt"):
        (states / name).touch()
    config = load(RunConfig, "sample/langdc/stage1", [f"output={tmp_path / 'run'}"])
    (tmp_path / "run" / output.RUN).write_text("{}")
    (tmp_path / "run" / output.SETTINGS).touch()
    monkeypatch.setattr(output, "_differences", lambda *_: "")
    with output.resolve_output_dir(config) as found:
        assert found == tmp_path / "run"
    stat = os.stat

    def of_others(path: object, **options: bool) -> object:
        found = stat(path, **options)  # pyright: ignore[reportArgumentType]
        fields = list(found)
        fields[4] = found.st_uid + (str(path) == str(states / "states.pt"))
        return os.stat_result(fields)

    monkeypatch.setattr(os, "stat", of_others)
    with pytest.raises(ValueError, match=r"states\.pt belongs to another user"), output.resolve_output_dir(config):
        pass


@sentence("**The cache** is")
def test_a_cache_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert jsonl.user_cache("tiny") == tmp_path / "home" / "langdc" / "tiny"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    found = jsonl.user_cache("tiny")
    assert found.parent.parent == tmp_path and found.parent.stat().st_mode & 0o777 == 0o700
    number = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: number + 1)
    (tmp_path / f"langdc-{number + 1}").symlink_to(found.parent)
    with pytest.raises(ValueError, match="belongs to another user"):
        jsonl.user_cache("tiny")


def test_a_link_in_the_place_of_a_file_that_is_written_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.json.partial").symlink_to(tmp_path / "mine")
    jsonl.write_json(tmp_path / "a.json", {})
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "a.json").read_text() == "{}\n"


LISTENING = """
from langdc import distributed
distributed.start(deepspeed=True)
import deepspeed
deepspeed.init_distributed("gloo")
import os, torch
print(type(torch.distributed.distributed_c10d._get_default_store().underlying_store).__name__)
files = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
own = {os.readlink(each) for each in files if os.path.islink(each)}
for name in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{name}").readlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
            print("LISTENS", fields[1].partition(":")[0])
"""


@sentence("**The network of a distributed run.**")
def test_one_process_has_no_store_that_others_reach() -> None:
    done = subprocess.run([sys.executable, "-c", LISTENING], cwd=ROOT, capture_output=True, text=True, check=True)
    listens = re.findall("^LISTENS (.*)$", done.stdout, re.MULTILINE)
    assert not [each for each in listens if set(each) == {"0"}], "on all addresses"
    assert "HashStore" in done.stdout
    for path in SOURCES:
        if path.name == "demo.py":  # of which SECURITY.md speaks apart
            continue
        for name, _ in calls(path):
            assert not re.search(r"HTTPServer|create_server|\.bind$|\.listen$|TCPServer|uvicorn|start_server", name), (
                path
            )


@sentence("**Who reaches the page of `langdc demo`.**")
def test_the_page_to_try_listens_on_this_machine_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["demo", "--port", str(taken.getsockname()[1])]) == 2
    assert "--host 127.0.0.1" in capsys.readouterr().err


@sentence("No command is handed to a shell.")
def test_no_command_is_handed_to_a_shell() -> None:
    started = 0
    for path in SOURCES:
        for name, call in calls(path):
            started += name.startswith("subprocess.")
            assert name not in ("os.system", "os.popen", "subprocess.getoutput"), path
            assert keywords(call).get("shell", "False") == "False", path
    assert started > 5


def test_temporary_names_are_not_guessable() -> None:
    for path in SOURCES:
        assert not re.search(r"""["']/(var/)?tmp/|mktemp\(""", path.read_text()), path
