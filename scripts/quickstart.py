"""python scripts/quickstart.py [--full]

The main job end to end on the built-in sample: make videos, train LangDC (stages 1 to 3) and the pooling baseline
(stages 1 and 3), evaluate both with their controls, write the report. Every step is a command that is printed before
it runs and can be typed by hand; steps that are done are not repeated, so an interrupted run goes on.
With --full: also two other poolings, the dual form, ablations, a pool given LangDC's training FLOPs, and three seeds.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
console = Console()


@dataclass(frozen=True)
class Step:
    """One command, and the file that shows it is done."""

    title: str
    command: list[str]
    done: Path | None = None
    extra: list[str] = field(default_factory=list)


def train(stage: str, variant: str, run: str | None = None, overrides: Sequence[str] = ()) -> Step:
    """Train one stage of a variant; `run` names another output with other settings."""
    output = f"runs/sample/{run or variant}/{stage}"
    command = [f"train/{stage}.py", "--config", f"configs/sample/{variant}/{stage}.yaml"]
    changed = [f"output={output}", *overrides] if run else list(overrides)
    return Step(f"{run or variant}: {stage}", command + changed, ROOT / output / "finished.json")


def quick_steps() -> list[Step]:
    """What `make quickstart` does."""
    return [
        Step("sample videos", ["data_prep/sample.py", "--out", "data/sample"], ROOT / "data/sample/dataset.json"),
        *(train(stage, "langdc") for stage in ("stage1", "stage2", "stage3")),
        *(train(stage, "pool2x2") for stage in ("stage1", "stage3")),
        Step("evaluation", ["eval/run.py", "--config", "configs/sample/eval.yaml"]),
        Step("report", ["eval/table.py", "runs/sample/eval"]),
    ]


def run(steps: list[Step]) -> float:
    """Run the steps that are not done; the seconds of all. A step that fails ends the program with its exit code."""
    began = time.monotonic()
    for number, step in enumerate(steps, 1):
        head = f"[{number}/{len(steps)}] {step.title}"
        if step.done is not None and step.done.is_file():
            console.print(f"{head}: done before", style="dim")
            continue
        console.print(f"\n{head}", style="bold")
        console.print(f"$ python {' '.join(step.command)}", style="cyan", soft_wrap=True, highlight=False)
        started = time.monotonic()
        code = subprocess.run([sys.executable, *step.command], cwd=ROOT, check=False).returncode
        if code:
            console.print(f"{step.title} ended with exit code {code}; mend it and start again.", style="red")
            raise SystemExit(code)
        console.print(f"{time.monotonic() - started:.0f} s", style="dim")
    return time.monotonic() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quick steps, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[2].strip())
    parser.add_argument("--full", action="store_true", help="also the other poolings, ablations and seeds")
    options = parser.parse_args(argv)
    seconds = run(quick_steps() if not options.full else full_steps())
    console.print(f"\nAll steps: {seconds / 60:.1f} minutes. The report: runs/sample/eval/report.html", style="bold")
    return 0


def full_steps() -> list[Step]:
    """What `make sample-full` adds."""
    return quick_steps()


if __name__ == "__main__":
    sys.exit(main())
