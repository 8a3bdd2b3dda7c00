"""Kill a training at a step, as a power cut would: every process of it, with no chance to tidy up."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from langdc.training.progress import read_log


def run(command: list, **options) -> None:
    """Run a command to its end; its output shows in the failure."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"


def run_until(command: list, log: Path, step: int, limit: float = 300.0, **options) -> int:
    """Start a command and kill it once its log has the step; returns the last step logged."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    deadline = time.monotonic() + limit
    while all(line["step"] < step for line in read_log(log)):
        assert process.poll() is None, f"ended with {process.returncode} before step {step}"
        assert time.monotonic() < deadline, f"no step {step} within {limit} s"
        time.sleep(0.005)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait()
    return read_log(log)[-1]["step"]


def losses(log: Path) -> dict[int, float]:
    """The loss of every step."""
    return {line["step"]: line["loss"] for line in read_log(log)}
