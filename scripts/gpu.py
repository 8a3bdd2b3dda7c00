"""python scripts/gpu.py [--budget 480] [--only ask,train] [--out runs/gpu] [--device cpu --tiny]

Check and measure on the GPU of this machine: `pytest -m gpu`, answers, training steps, long videos, compressors, LoRA,
the sample. The steps are ordered by worth; each is a process that is ended when its own seconds, and what those before
it left of the budget, are over. What the budget is too short for is said first.
gpu.json and gpu.md in --out are written anew after each step, so a run that is cut off keeps what it has; STEP.log has
what a step said. --tiny with --device cpu tries every step with small sizes; its figures mean nothing.
"""

import argparse
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.asked import asked  # noqa: E402
from benchmarks.gpu.page import page, table, tables  # noqa: E402
from langdc.failures import guarded  # noqa: E402
from langdc.jsonl import write_json, write_text  # noqa: E402

LIMITS = {"card": 25, "tests": 65, "ask": 80, "train": 80, "read": 80, "lora": 35, "methods": 25, "sample": 90}
"""Seconds of each step, in the order in which they run; each also has what those before it left of the budget."""
LEAST, GRACE = 10, 5
"""Seconds below which no step is started, and seconds to end by itself after its limit."""


@dataclass(frozen=True)
class Step:
    """A process: its arguments to Python, the seconds that are kept for it, and the file it writes."""

    name: str
    words: list[str]
    limit: float
    file: Path


def steps(options: argparse.Namespace) -> list[Step]:
    """The steps that were chosen, the card always first; ValueError for unknown names."""
    chosen = options.only.split(",") if options.only else list(LIMITS)
    if unknown := sorted(set(chosen) - set(LIMITS)):
        raise ValueError(f"There is no step {', '.join(unknown)}; there is {', '.join(LIMITS)}.")
    found = []
    for name, limit in LIMITS.items():
        file = options.out / f"{name}.json"
        words = ["-m", "benchmarks.gpu", name, "--out", str(file), "--device", options.device]
        words += ["--tiny"] if options.tiny else []
        if name == "tests":
            file = options.out / "tests.xml"
            files = sorted((ROOT / "tests").rglob("test_*.py"))
            tests = [str(path) for path in files if "mark.gpu" in path.read_text()]
            words = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={file}", *tests]
        if name in chosen or name == "card":
            found.append(Step(name, words, limit * options.scale, file))
    return found


def run(step: Step, seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run a step with a time limit of `seconds`: {"status", "reason", "seconds", "limit", "tables"}."""
    step.file.unlink(missing_ok=True)
    log, started = step.file.with_suffix(".log"), time.monotonic()
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *step.words], cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            status, reason = ("done", "") if code == 0 else ("failed", f"exit code {code}: {_last_line(log)}")
        except subprocess.TimeoutExpired:
            status, reason = "cut off", f"its {seconds:.0f} s are over"
            os.killpg(process.pid, signal.SIGINT)  # upon which pytest writes what it has
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:  # also when this program is ended: the step and all that it started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    taken = time.monotonic() - started
    return {"status": status, "reason": reason, "seconds": taken, "limit": seconds, "tables": tables(step.file)}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps and write the pages; exit code 1 if a step failed or was cut off, or a test failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--budget", type=float, default=480, help="seconds of all steps (default: 480)")
    parser.add_argument("--only", default="", help=f"steps, with commas between them: {', '.join(LIMITS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder (default: runs/gpu)")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--scale", type=float, default=1, help="factor of the limits of the steps")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also for the steps, where a shell started this with `&`
    options.out = options.out.resolve()
    try:
        if not 0 < options.budget < math.inf:
            raise ValueError(f"--budget {options.budget}: give seconds, more than 0.")
        chosen = steps(options)
        options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    command = f"python scripts/gpu.py {' '.join(argv if argv is not None else sys.argv[1:])}".strip()
    waiting = {"status": "not run", "reason": "the run ended before it", "seconds": 0.0, "limit": 0.0, "tables": {}}
    left_out = {**waiting, "reason": "not chosen"}
    names = {step.name for step in chosen}
    found: dict[str, Any] = {"command": command, "budget": options.budget}
    found["steps"] = {name: dict(waiting if name in names else left_out) for name in LIMITS}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LANGDC_TEST_DEVICE": options.device}
    began, sums = time.monotonic(), list(itertools.accumulate(step.limit for step in chosen))
    kept = [step for step, total in zip(chosen, sums, strict=True) if total <= max(options.budget, sums[0])]
    for step in chosen[len(kept) :]:
        found["steps"][step.name]["reason"] = reason = f"the budget of {options.budget:g} s is too short"
        print(f"{step.name}: not run, {reason}", flush=True)
    for step, total in zip(kept, sums, strict=False):
        if step.name not in names:
            found["steps"][step.name]["reason"] = "the card step failed"
            continue
        left = options.budget - (time.monotonic() - began) - (sums[len(kept) - 1] - total)
        if left < min(LEAST, step.limit / 2):
            found["steps"][step.name]["reason"] = "the budget is spent"
        else:
            print(f"{step.name}: at most {left:.0f} s", flush=True)
            measured = found["steps"]["card"]["tables"].get("ceilings", [])
            if measured and step.name not in ("card", "tests"):
                each = 1e12 * measured[0]["TFLOP/s"], 1e9 * measured[0]["GB/s"]
                step.words.extend(["--ceilings", *map(str, each)])
            found["steps"][step.name] = run(step, left, environment)
            if step.name == "card" and found["steps"]["card"]["status"] == "failed":
                names = {"card"}  # there is nothing to measure on
            print("  {status} {reason} ({seconds:.0f} s)".format(**found["steps"][step.name]), flush=True)
        found["seconds"], found["asked"] = time.monotonic() - began, asked(found["steps"])
        write_json(options.out / "gpu.json", found)
        write_text(options.out / "gpu.md", page(found))
    print(f"{options.out / 'gpu.md'}\n" + "\n".join(table(found["asked"])))
    return int(any(found["steps"][name]["status"] != "done" for name in names))


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
