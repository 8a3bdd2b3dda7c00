"""Run folders survive being cut off, and refuse to be mixed."""

import json
from pathlib import Path

import pytest

from langdc.evaluation.results import LineFile, RunFolder, read_lines


def _line(key: str, **more) -> dict:
    return {"type": "answer", "key": key, **more}


@pytest.mark.parametrize("torn", [b'{"type": "answer", "ke', b'{"broken": \n', b"\xff"])
def test_a_torn_last_line_is_dropped_and_made_again(tmp_path: Path, torn: bytes):
    path = tmp_path / "rows" / "a.jsonl"
    LineFile(path).append([_line("1"), _line("2")])
    with path.open("ab") as file:
        file.write(torn)
    assert [line["key"] for line in read_lines(path)] == ["1", "2"]
    again = LineFile(path)
    again.append([_line("2", text="not twice"), _line("3")])
    assert read_lines(path) == [_line("1"), _line("2"), _line("3")]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "1"}\nbroken\n{"key": "2"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2"):
        read_lines(path)


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
