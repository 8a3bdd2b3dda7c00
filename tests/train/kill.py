"""Kill a training at a step, as a power cut would: every process of it, with no chance to tidy up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import psutil

from langdc import jsonl

LIMIT = 300.0
"""Seconds after which a command hangs, as far as a test is concerned."""


def run(command: list, **options) -> str:
    """Run a command to its end and return what it printed; its errors show in the failure."""
    with TemporaryFile("w+") as said:
        process = _start(command, said, **options)
        try:
            process.wait(LIMIT)
        finally:
            _end(process)
        assert process.returncode == 0, f"ended with {process.returncode}:\n{_tail(said)}"
        said.seek(0)
        return said.read()


def run_until(command: list, log: Path, lines: int, victim: str = "", **options) -> int:
    """Start a command and kill it, all its processes at once, when its log has so many lines; returns how many it has.

    `victim`: kill only the process with this argument; the others must then end by themselves.
    """
    with TemporaryFile("w+") as said:
        process = _start(command, said, **options)
        try:
            _wait(lambda: len(jsonl.read(log)) >= lines, lambda: process.poll() is None, said)
            if victim:
                (chosen,) = [one for one in _family(process) if victim in one.cmdline()]
                chosen.kill()
                assert process.wait(LIMIT) != 0
        finally:
            left = _end(process)
        assert not (victim and left), f"still there: {left}"
    return len(jsonl.read(log))


def run_and_ask(command: list, log: Path, lines: int, number: int, asked: str = "", **options) -> int:
    """Start a command and send a signal to all its processes, or to the one with the argument `asked`, as above.

    Returns how the command ended; all of its processes must end by themselves.
    """
    with TemporaryFile("w+") as said:
        process = _start(command, said, **options)
        try:
            _wait(lambda: len(jsonl.read(log)) >= lines, lambda: process.poll() is None, said)
            for one in _family(process):
                if asked in one.cmdline() or not asked:
                    one.send_signal(number)
            process.wait(LIMIT)
            deadline = time.monotonic() + LIMIT
            while _family(process) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            left = _end(process)
        assert not left, f"still there: {left}:\n{_tail(said)}"
    return process.returncode


def losses(log: Path) -> dict[int, float]:
    """The loss by step."""
    return {line["step"]: line["loss"] for line in jsonl.read(log)}


def _start(command: list, said: IO, **options) -> subprocess.Popen:
    """As from a terminal: tests that run in the background of a shell ignore Ctrl-C, and so would what they start."""
    words = [sys.executable, *map(str, command)]
    return subprocess.Popen(
        words,
        stdout=said,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def _wait(done: Callable[[], bool], alive: Callable[[], bool], said: IO | None = None) -> None:
    deadline = time.monotonic() + LIMIT
    while not done():
        assert alive(), f"ended too early:\n{_tail(said)}"
        assert time.monotonic() < deadline, f"not there within {LIMIT} s:\n{_tail(said)}"
        time.sleep(0.002)


def _tail(said: IO | None) -> str:
    if said is None:
        return ""
    said.seek(0)
    return said.read()[-6000:]


def _family(process: subprocess.Popen) -> list[psutil.Process]:
    """Every process of the command that is still at work, found by their common session."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(one.pid) == process.pid and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def _end(process: subprocess.Popen) -> list[psutil.Process]:
    """Kill whatever is left of a command, and wait until it is gone; returns what there was."""
    left = _family(process)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while _family(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
