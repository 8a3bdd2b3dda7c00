"""Run folders survive being cut off, and refuse to be mixed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from langdc import jsonl
from langdc.evaluation.results import LineFile, RunFolder


def _line(key: str, **more) -> dict:
    return {"type": "answer", "key": key, **more}


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


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "1"}\nbroken\n{"key": "2"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2"):
        jsonl.read(path)


def test_a_folder_goes_on_only_with_the_same_things(tmp_path: Path):
    identity = {"config": {"rows": [{"name": "a", "limit": 1}]}, "weights_sha256": {"a": "x"}}
    RunFolder.start(tmp_path / "run", identity, {"target_kinds": []}, ["one"])
    folder = RunFolder.start(tmp_path / "run", identity, {"target_kinds": []}, ["two", "a b"])
    assert [session["command"] for session in folder.header["sessions"]] == ["one", "two 'a b'"]
    with pytest.raises(ValueError, match=r"weights_sha256\.a: 'x' there, 'y' now"):
        RunFolder.start(tmp_path / "run", {**identity, "weights_sha256": {"a": "y"}}, {}, [])
    assert len(json.loads((tmp_path / "run" / "header.json").read_text())["sessions"]) == 2


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no evaluation"):
        RunFolder.start(tmp_path, {"config": {}}, {}, [])
    with pytest.raises(ValueError, match="holds no evaluation"):
        RunFolder.read(tmp_path)


HOLDER = """
import sys, time
from pathlib import Path
from langdc.evaluation.results import RunFolder
with RunFolder.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_run_at_a_time_writes_into_a_folder(tmp_path: Path):
    run = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="Another process still writes into"), RunFolder.held(run):
            pass
    finally:
        other.kill()
        other.wait()
    with RunFolder.held(run):  # whoever is killed holds nothing any more
        assert not run.exists()


def test_processes_of_one_run_do_not_shut_each_other_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tmp_path / "my.run"
    second = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True, env=second)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        monkeypatch.setenv("WORLD_SIZE", "2")
        with RunFolder.held(run):
            pass
        monkeypatch.setenv("WORLD_SIZE", "1")  # a later run of one process
        with pytest.raises(ValueError, match="Another process still writes into"), RunFolder.held(run):
            pass
    finally:
        other.kill()
        other.wait()
