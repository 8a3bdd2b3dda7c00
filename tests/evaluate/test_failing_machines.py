"""What can go wrong around a run, as docs/failures.md lists it: no endpoint, no space, no process; it goes on later."""

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from langdc import jsonl, watchdog
from tests.evaluate import runs
from tests.evaluate.place import DONE, FAILED, MACHINE, ROOT, Place

# ---- the judge


def test_the_endpoint_is_down(place: Place, endpoint: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    tree = yaml.safe_load(place.file.read_text())
    tree["judge"] = {"url": nobody, "model": "judge", "retries": 1, "pause": 0.0, "workers": 2}
    place.file.write_text(yaml.safe_dump(tree))
    assert place.run() == FAILED
    said = capsys.readouterr().err
    assert "answers are not judged" in said and nobody in said and "cannot be reached" in said
    answered = place.answers()
    assert not any(line["failed"] for lines in answered.values() for line in lines)
    somebody = endpoint("{'pred': 'yes', 'score': 5}")
    assert place.run(f"judge.url={somebody.url}") == DONE
    assert place.answers() == answered  # no question was asked again
    put = {message["content"] for request in somebody.requests for message in request["messages"][1:]}
    assert len(put) == len(somebody.requests) > 0
    assert place.run(f"judge.url={nobody}") == DONE  # verdicts are remembered


# ---- the machine


class Disk:
    """Room for so many more bytes under a folder; a write beyond that is cut short and fails, as on a full disk."""

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room = folder, room

    def open(self, real: Callable[..., Any], path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+") or not path.is_relative_to(self.folder):
            return real(path, mode, *args, **kwargs)
        raw: Any = _Limited(path, mode.replace("t", "").replace("b", ""), self)
        file = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return file if "b" in mode else io.TextIOWrapper(file, encoding=kwargs.get("encoding") or "utf-8")


class _Limited(io.FileIO):
    def __init__(self, path: Path, mode: str, disk: Disk) -> None:
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data: Any) -> int:
        fits = min(len(data), self.disk.room)
        if not fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.disk.room -= fits
        return super().write(bytes(data)[:fits])


LATER = [pytest.param(room, marks=pytest.mark.slow) for room in (700, 13000)]


@pytest.mark.parametrize("room", [0, 9000, *LATER])
def test_a_full_disk(
    place: Place,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    room: int,
) -> None:
    place.output.parent.mkdir(exist_ok=True)
    disk, real = Disk(place.output, room), Path.open
    with monkeypatch.context() as full:
        full.setattr(Path, "open", lambda path, *args, **kwargs: disk.open(real, path, *args, **kwargs))
        assert place.run() == MACHINE
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert disk.room == 0
    for path in place.output.glob("results/*/*.jsonl"):
        assert all(line["key"] for line in jsonl.read(path))  # all but the last line is whole
    assert place.run() == DONE
    undisturbed = place.lines(finished)
    assert place.lines() == {name: undisturbed[name] for name in ("langdc", "random")}
    assert not list(place.output.rglob("*.partial"))


@pytest.mark.slow
def test_a_killed_rank(place: Place, prepared: Path, tmp_path: Path) -> None:
    records = runs.write_data(tmp_path / "more", videos=12, seed=8)
    tree = yaml.safe_load(place.file.read_text())
    tree |= {"task": {"name": "sample", "data": str(records)}, "max_new_tokens": 12, "batch_size": 1}
    place.file.write_text(yaml.safe_dump(tree))
    alone = tmp_path / "alone"
    assert place.run(f"output={alone}") == DONE
    launcher = _launch(place.file)
    _wait_for_lines(launcher, place.output)
    _rank(launcher, 1).send_signal(signal.SIGKILL)
    said = launcher.communicate(timeout=100)[0].decode()
    assert launcher.returncode != DONE and "Signal 9 (SIGKILL)" in said
    assert not all("finished" in of for of in map(_keys, place.lines().values()))
    again = _launch(place.file)
    said = again.communicate(timeout=100)[0].decode()
    assert again.returncode == DONE, said
    assert place.lines() == place.lines(alone)


@pytest.mark.slow
def test_a_rank_that_stands_still(place: Place, prepared: Path, tmp_path: Path) -> None:
    """The other one has answered its share, waits, and says for whom; the same command completes both."""
    records = runs.write_data(tmp_path / "more", videos=12, seed=8)
    tree = yaml.safe_load(place.file.read_text())
    tree |= {"task": {"name": "sample", "data": str(records)}, "max_new_tokens": 12, "batch_size": 1}
    place.file.write_text(yaml.safe_dump({**tree, "watchdog": 15.0}))
    launcher = _launch(place.file)
    _wait_for_lines(launcher, place.output)
    _rank(launcher, 1).suspend()
    said = launcher.communicate(timeout=200)[0].decode()
    assert launcher.returncode != DONE and "Watchdog: process 0 of 2" in said
    assert "finished nothing for 15 seconds" in said and "It waits for other processes (process 1, last seen" in said
    assert f"exitcode  : {watchdog.EXIT_CODE}" in said
    place.file.write_text(yaml.safe_dump({**tree, "watchdog": None}))
    again = _launch(place.file)
    said = again.communicate(timeout=200)[0].decode()
    assert again.returncode == DONE, said


def _keys(lines: list[dict]) -> set[str]:
    return {line["key"] for line in lines}


def _launch(config: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "eval/run.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [*command, "--config", str(config)],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _wait_for_lines(launcher: subprocess.Popen, output: Path) -> None:
    """Until the second process has written something."""
    while not any(path.stat().st_size for path in output.glob("results/*/1.jsonl")):
        assert launcher.poll() is None, launcher.communicate()[0].decode()
        time.sleep(0.002)


def _rank(launcher: subprocess.Popen, number: int) -> psutil.Process:
    ranks = psutil.Process(launcher.pid).children()
    return next(rank for rank in ranks if rank.environ().get("RANK") == str(number))
