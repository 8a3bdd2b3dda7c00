"""Progress where there is no terminal: a line now and then, which says how fast it goes and what is left."""

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from langdc import cli, features, log
from langdc.log import _pace, progress, track
from langdc.train.run import train
from tests import tiny
from tests.train import small


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is logged, a line of progress every 50 ms."""
    monkeypatch.setattr(log, "LINE_SECONDS", 0.05)
    kept, logger = _Kept(), log.get_logger("langdc.log")
    logger.addHandler(kept)
    yield kept.lines
    logger.removeHandler(kept)


def _slow(count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_lines_without_a_terminal_also_while_one_item_takes_long(lines: list[str]):
    assert list(track(_slow(3, 0.4), 3, "Encoding [/b] videos")) == [0, 1, 2]
    assert {line.partition(",")[0] for line in lines} >= {f"Encoding [/b] videos: {n} of 3" for n in range(3)}
    assert lines[0].endswith("0 a second, unknown time left")
    assert any(re.search(r": 2 of 3, [\d.]+ a second, 0:00:0\d left$", line) for line in lines)
    told = len(lines)
    time.sleep(0.2)
    assert len(lines) == told, "none afterwards"


def test_a_line_at_once_and_one_of_the_clock_say_nothing_twice(lines: list[str], monkeypatch: pytest.MonkeyPatch):
    """Lines come 30 s after the last one. `script`: when, and what is then done, while the thread waits a second."""
    clock, watches, stop = [0.0], [], threading.Event()
    script = {29.5: lambda: advance(10, now=True), 60.5: lambda: advance(0, now=True), 70.5: lambda: advance(9)}

    class Thread:
        def __init__(self, target: Any, **_: Any) -> None:
            self.start = lambda: watches.append(target)

    def wait(seconds: float) -> bool:
        clock[0] += seconds / 2
        script.get(clock[0], lambda: None)()
        clock[0] += seconds / 2
        return clock[0] >= 95

    monkeypatch.setattr(log, "LINE_SECONDS", 30.0)
    monkeypatch.setattr(stop, "wait", wait)
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(log, "threading", SimpleNamespace(Thread=Thread, Event=lambda: stop))
    with progress("Steps", 100) as advance:
        watches[0]()
    assert [line.partition(" of ")[0] for line in lines] == ["Steps: 10", "Steps: 10", "Steps: 19"]
    assert [line.rpartition(", ")[2] for line in lines] == ["0:04:26 left", "0:09:00 left", "0:06:24 left"]


def test_lines_where_the_end_is_not_known(lines: list[str]):
    list(track(_slow(2, 0.3), None, "Rows"))
    assert lines[0] == "Rows: 0, 0:00:00 so far"
    assert any(re.search(r"^Rows: 1, [\d.]+ a second, 0:00:0\d so far$", line) for line in lines)


def test_lines_of_a_folder_that_something_else_fills(lines: list[str], tmp_path: Path):
    (tmp_path / "old").write_bytes(bytes(10**6))
    with progress("Fetching x, MB", 4, folder=tmp_path):
        (tmp_path / "new").write_bytes(bytes(2 * 10**6))
        (tmp_path / "link").symlink_to(tmp_path / "new")
        time.sleep(0.3)
    assert re.search(r"^Fetching x, MB: 3 of 5, [\d.e+]+ a second, 0:00:00 left$", lines[-1])


def _import(place: Path) -> list[str]:
    rows = [{"question": f"what is {n}?", "answer": "one"} for n in range(3000)]
    (place / "rows.json").write_text(json.dumps(rows))
    return ["data", "import", str(place / "rows.json"), "--out", str(place / "out.jsonl")]


def _check(place: Path) -> list[str]:
    return ["data", "check", str(small.folder() / "train.jsonl"), "--out", str(place / "found"), "--jobs", "1"]


COMMANDS = {
    "Rows of rows": _import,
    "Checking media": _check,
    "Writing": lambda place: ["export", "sample:langdc", str(place / "whole")],
    "Loading": lambda place: ["export", "sample:langdc", str(place / "whole")],
}


@pytest.mark.parametrize("what", COMMANDS)
def test_long_commands_write_lines(lines: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "LINE_SECONDS", 0.002)
    assert cli.main(COMMANDS[what](tmp_path)) == 0
    assert any(line.startswith(what) for line in lines), lines[:9]


def test_encoding_and_steps_write_lines(lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "LINE_SECONDS", 0.002)
    hashed, model, projectors = features._spec_key, tiny.model("pool"), ["backbone.projectors.*"]
    monkeypatch.setattr(features, "_spec_key", lambda spec: (time.sleep(0.05), hashed(spec))[1])
    train(small.run_config(model, output=str(tmp_path / "x"), features=str(tmp_path / "f"), trainable=projectors))
    assert any(re.search(r"^Encoding videos: [0-5] of 6, .* left$", line) for line in lines)
    assert any(re.search(r"^x: loss [\d.]+, steps: [1-4] of 4, .* left$", line) for line in lines)
    assert any(line.startswith("Reading files: ") for line in lines) and lines[-1].startswith("Writing ")


def test_other_processes_say_nothing(lines: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    list(track(_slow(2, 0.2), 2, "Encoding videos"))
    assert not lines


def test_the_pace_before_anything_is_done():
    assert _pace(0, 5, 3.0) == "0 a second, unknown time left"
