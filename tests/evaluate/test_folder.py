"""Run folders survive being cut off, and refuse to be mixed."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from langdc import jsonl
from langdc.config import RunConfig, check
from langdc.evaluate import folder as folder_module
from langdc.evaluate.folder import EvalFolder, LineFile
from langdc.train import output


def _line(key: str, **more) -> dict:
    return {"type": "other", "key": key, **more}


@pytest.mark.parametrize("torn", [b'{"type": "answer", "ke', b'{"broken": \n', b"\xff"])
def test_a_torn_last_line_is_dropped_and_made_again(tmp_path: Path, torn: bytes):
    path = tmp_path / "rows" / "a.jsonl"
    LineFile(path).append([_line("1"), _line("2")])
    with path.open("ab") as file:
        file.write(torn)
    assert [line["key"] for line in jsonl.read(path)] == ["1", "2"]
    again = LineFile(path)
    again.append([_line("2", text="not twice"), _line("3")])
    assert jsonl.read(path) == [_line("1"), _line("2"), _line("3")]


def test_every_process_has_a_file_and_knows_the_lines_of_all(tmp_path: Path):
    one, other = LineFile(tmp_path / "a" / "0.jsonl"), LineFile(tmp_path / "a" / "1.jsonl")
    one.append([_line("1")])
    other.append([_line("2")])
    assert "2" not in one
    one.reread()
    one.append([_line("2", text="not twice"), _line("3")])
    assert [line["key"] for line in one.lines] == ["1", "2", "3"]
    assert jsonl.read(tmp_path / "a" / "0.jsonl") == [_line("1"), _line("3")]
    assert [line["key"] for line in LineFile(tmp_path / "a" / "7.jsonl").lines] == ["1", "3", "2"]  # of any number


def test_a_folder_goes_on_only_with_the_same_things(tmp_path: Path):
    identity = {"config": {"sweep": [{"name": "a", "limit": 1}]}, "weights_sha256": {"a": "x"}}
    EvalFolder.start(tmp_path / "run", identity, {"target_kinds": [], "entries": []}, ["one"])
    folder = EvalFolder.start(tmp_path / "run", identity, {"target_kinds": [], "entries": []}, ["two", "a b"])
    assert [session["command"] for session in folder.header["sessions"]] == ["one", "two 'a b'"]
    with pytest.raises(ValueError, match=r"weights_sha256\.a: 'x' there, 'y' now"):
        EvalFolder.start(tmp_path / "run", {**identity, "weights_sha256": {"a": "y"}}, {}, [])
    assert len(json.loads((tmp_path / "run" / "header.json").read_text())["sessions"]) == 2


def test_entries_that_changed_are_named(tmp_path: Path):
    entries = [{"name": name, "keep": 0.25} for name in ("a", "b", "c")]
    EvalFolder.start(tmp_path, {"entries": entries}, {}, [])
    changed = [entries[0], {"name": "b", "keep": 0.5}, {"name": "new", "keep": 1.0}, {"name": "more"}]
    with pytest.raises(ValueError, match="entries") as error:
        EvalFolder.start(tmp_path, {"entries": changed}, {}, [])
    said = str(error.value)
    for line in ("entries: 'c' is gone", "entries: 'new' is new", "entries.b.keep: 0.25 there, 0.5 now"):
        assert line in said
    assert "{" not in said and "entries.a" not in said
    with pytest.raises(ValueError, match=r"entries: in another order"):
        EvalFolder.start(tmp_path, {"entries": entries[::-1]}, {}, [])


def test_another_commit_or_source_of_a_plugin_warns_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(logging.getLogger("langdc"), "propagate", True)
    identity, info = {"config": {}}, {"entries": []}
    for commit, plugins in (("a", {"mine": "1"}), ("a", {"mine": "1"}), ("b+", {"mine": "2"})):
        monkeypatch.setattr(folder_module, "describe_machine", lambda command, commit=commit: {"commit": commit})
        assert not caplog.records
        EvalFolder.start(tmp_path / "run", identity, info, [], plugins=plugins)
    assert list(dict.fromkeys(record.message.partition("run")[2] for record in caplog.records)) == [
        " was made with commit a; this is b+.",
        ": the source of mine has changed since the last start.",
    ]


def test_a_folder_of_version_0_1_is_named(tmp_path: Path):
    (tmp_path / "header.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match=r"langdc 0\.1, whose evaluations are not read"):
        EvalFolder.read(tmp_path)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no evaluation"):
        EvalFolder.start(tmp_path, {"config": {}}, {}, [])
    with pytest.raises(ValueError, match="holds no evaluation"):
        EvalFolder.read(tmp_path)


HOLDER = """
import sys, time
from pathlib import Path
from langdc.evaluate.folder import EvalFolder
with EvalFolder.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_one_run_at_a_time_writes_into_a_folder(tmp_path: Path):
    run = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="Another process still writes into"), EvalFolder.locked(run):
            pass
    finally:
        other.kill()
        other.wait()
    with EvalFolder.locked(run):  # whoever is killed holds nothing any more
        EvalFolder.start(run, {"config": {}}, {"entries": []}, [])  # and leaves nothing that is in the way


def test_a_symbolic_link_leads_to_the_same_lock(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with (
        EvalFolder.locked(tmp_path / "run"),
        pytest.raises(ValueError, match="Another process still writes into"),
        EvalFolder.locked(tmp_path / "link"),
    ):
        pass


def test_a_training_and_an_evaluation_keep_each_other_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output, "LOCK_TIMEOUT_SECONDS", 0.1)
    member = {"name": "pool"}
    train = {"data": ["none.jsonl"], "steps": 1}
    tree = {"objective": "answer", "model": {"backbone": member, "compressor": member}, "train": train}
    config = check(RunConfig, {**tree, "output": str(tmp_path / "run")}, "test")
    refused = pytest.raises(ValueError, match="Another process still writes into")
    with EvalFolder.locked(tmp_path / "run"), refused, output.resolve_output_dir(config):
        pass
    with output.resolve_output_dir(config), refused, EvalFolder.locked(tmp_path / "run"):
        pass


@pytest.mark.slow
def test_processes_of_one_run_do_not_shut_each_other_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tmp_path / "my.run"
    second = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True, env=second)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        monkeypatch.setenv("WORLD_SIZE", "2")
        with EvalFolder.locked(run):
            pass
        monkeypatch.setenv("WORLD_SIZE", "1")  # a later run of one process
        with pytest.raises(ValueError, match="Another process still writes into"), EvalFolder.locked(run):
            pass
    finally:
        other.kill()
        other.wait()
