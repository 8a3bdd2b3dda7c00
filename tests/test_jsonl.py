"""JSON lines that a kill cut short, and files that are whole or not there."""

import errno
import fcntl
import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from langdc import jsonl


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines.jsonl"
    assert jsonl.read(path) == []
    jsonl.append(path, {"a": 1}, {"a": "zwei é"})
    jsonl.append(path, {"a": 3})
    assert jsonl.read(path) == [{"a": 1}, {"a": "zwei é"}, {"a": 3}]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_last_line_cut_short_is_left_out_and_replaced(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "lines.jsonl"
    jsonl.append(path, {"a": 1}, {"b": 2})
    path.write_bytes(path.read_bytes()[:-cut])
    left = [{"a": 1}, {"b": 2}] if cut == 1 else [{"a": 1}]  # cut == 1: only the line's end is missing
    assert jsonl.read(path) == left
    jsonl.append(path, {"c": 3})
    assert jsonl.read(path) == [*left, {"c": 3}]


@pytest.mark.parametrize("size", [1, 1 << 16, 1 << 18])
@pytest.mark.parametrize("torn", [b"{", b'{"b": \n', b"\0\0", b"\0\n"])
def test_a_broken_last_line_of_any_length(tmp_path: Path, size: int, torn: bytes) -> None:
    path, first = tmp_path / "lines.jsonl", {"a": "x" * size}
    jsonl.append(path, first)
    with path.open("ab") as file:
        file.write(torn)
    assert jsonl.read(path) == [first]
    jsonl.append(path, {"c": 3})
    assert jsonl.read(path, strict=True) == [first, {"c": 3}]


def test_what_was_downloaded_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with pytest.raises(FileNotFoundError):
        jsonl.read(path, strict=True)
    path.write_text('{"a": 1}\n\n{"b": 2}')
    assert jsonl.read(path, strict=True) == [{"a": 1}, {"b": 2}]
    path.write_text('{"a": 1}\n\n{"b": 2')
    with pytest.raises(ValueError, match="line 3"):
        jsonl.read(path, strict=True)


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b"\xff", b"[" * 100_000, b"\0\0", b'{"a": 1, "a": 2}', b'{"b": {"a": 1, "a": 1}}']
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 2"):
        jsonl.read(path)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    jsonl.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        jsonl.write_json(path, {"a": object()})
    with pytest.raises(RuntimeError), jsonl.writing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


@pytest.mark.parametrize("shared", [False, True])
def test_tensors_get_the_permissions_of_the_umask(tmp_path: Path, shared: bool) -> None:
    path, before = tmp_path / "x.safetensors", os.umask(0o027)
    try:
        with jsonl.writing(path, shared) as partial:
            save_file({"x": torch.ones(3)}, partial)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert load_file(path)["x"].tolist() == [1, 1, 1]


def test_files_are_on_the_disk_before_they_get_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: (calls.append(str(Path(f"/proc/self/fd/{number}").readlink())), sync(number))
    )
    monkeypatch.setattr(Path, "replace", lambda path, to: (calls.append("rename"), replace(path, to)))
    jsonl.write_text(tmp_path / "a", "text")
    assert calls == [str(tmp_path / "a.partial"), "rename", str(tmp_path)]
    calls.clear()
    with jsonl.writing_folder(tmp_path / "folder") as partial:
        (partial / "b").write_text("text")
    assert calls == [str(tmp_path / "folder.partial" / "b"), str(tmp_path / "folder.partial"), "rename", str(tmp_path)]


HOLDER = """
import sys, time
from pathlib import Path
from langdc import jsonl
with jsonl.locked(Path(sys.argv[1]), "") if sys.argv[2] == "locked" else getattr(jsonl, sys.argv[2])(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("way", ["locked", "writing", "writing_folder"])
def test_one_process_at_a_time_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """What a kill leaves holds nothing, and is not in the way."""
    monkeypatch.setattr(jsonl, "_WAIT_SECONDS", 0.1)
    path = tmp_path / "new" / "x"
    write = (lambda path: jsonl.locked(path, "writes")) if way == "locked" else getattr(jsonl, way)
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), way], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        (tmp_path / "link").symlink_to(tmp_path / "new")
        for name in (path, tmp_path / "link" / "x"):
            with pytest.raises(ValueError, match=r"Another process .*writ"), write(name):
                pass
    finally:
        other.kill()
        other.wait()
    with write(path) as partial:
        assert way != "writing" or (partial is not None and partial.read_bytes() == b"")
    assert {file.name for file in path.parent.iterdir()} == {"x"}


def test_without_locks_a_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(logging.getLogger("langdc"), "propagate", True)
    monkeypatch.setattr(fcntl, "flock", refused)
    with jsonl.locked(tmp_path / "lock", "writes"), jsonl.locked(tmp_path / "lock", "writes"):
        pass
    (said,) = {record.message for record in caplog.records}
    assert str(tmp_path) in said and "without locks (No locks available)" in said


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "disk" / "y")
    jsonl.write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").is_symlink() and (tmp_path / "disk" / "y").read_text() == "text"


def test_folders_are_on_the_disk_before_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(Path(f"/proc/self/fd/{number}").readlink()))
    jsonl.make_folder(tmp_path / "a" / "b")
    jsonl.make_folder(tmp_path / "a" / "b")
    assert sorted(calls) == [tmp_path, tmp_path / "a"]


def test_files_of_a_folder_are_for_whom_the_folder_is(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with jsonl.writing_folder(tmp_path / "out") as partial:
            save_file({"x": torch.ones(3)}, partial / "x.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "x.safetensors").stat().st_mode) == 0o640


def test_a_folder_that_failed_is_gone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "old").touch()
    with pytest.raises(RuntimeError), jsonl.writing_folder(tmp_path / "out") as partial:
        assert list(partial.iterdir()) == []
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
