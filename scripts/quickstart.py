"""python scripts/quickstart.py [--full]

The main job end to end on the built-in sample: make videos, train LangDC (stages 1 to 3) and average pooling (stage 3)
from the model that ships, evaluate both beside training-free methods and controls, write the report. Every step is a
command that is printed before it runs and can be typed by hand; the same call resumes after the last finished step.
With --full: also other trained compressors with the same budget, LangDC's variants, three seeds of each, and a pool
given LangDC's training FLOPs.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from langdc.failures import guarded, run_command

DIVERSE = "[{name: pool, sides: [4, 4]}, {name: divprune, tokens: 48}]"  # as many as the dual form reads
TWO = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
ROOT = Path(__file__).resolve().parent.parent
console = Console(markup=False, emoji=False)


@dataclass(frozen=True)
class Step:
    """One command, and the file that shows it is done."""

    title: str
    command: list[str]
    done: Path | None = None


def langdc(title: str, *words: str, done: str = "") -> Step:
    """A subcommand of `langdc`."""
    return Step(title, ["-m", "langdc.cli", *words], ROOT / done if done else None)


def train(config: str, run: str = "", *overrides: str) -> Step:
    """Train a config of the sample, a folder's runs in order; `run` names another folder of outputs."""
    run = run or config
    output, last = f"runs/sample/{run}", "/stage3" if (ROOT / f"configs/sample/{config}").is_dir() else ""
    placed = [] if run == config else [f"output={output}"]
    return langdc(run, "train", f"sample/{config}", *overrides, *placed, done=f"{output}{last}/finished.json")


def evaluate(name: str) -> list[Step]:
    """Evaluate the rows of configs/sample/NAME.yaml in two processes and write the report."""
    return [
        Step("evaluation", [*TWO, "eval/run.py", "--config", f"configs/sample/{name}.yaml"]),
        Step("report", ["eval/table.py", f"runs/sample/{name}"]),
    ]


def main_runs() -> list[Step]:
    """The data, LangDC and the baseline."""
    return [
        langdc("sample videos", "data", "sample", "--out", "data/sample", done="data/sample/dataset.json"),
        Step("encoder features", [*TWO, "data_prep/features.py", "--train", "sample/pool"]),
        train("langdc"),
        train("pool"),
    ]


def more_steps() -> list[Step]:
    """What `make sample-full` adds, but for the pool that waits for LangDC's figures."""
    data = ("data", "sample", "--places", "--out", "data/places")
    return [
        langdc("captions with places", *data, done="data/places/dataset.json"),
        *(
            train(name)
            for name in ("resampler", "matryoshka", "selector", "ldpv2", "vidcom2", "grounded", "joint", "dual")
        ),
        train("vidcom2", "divprune48", f"model.compressor.members={DIVERSE}"),
        places("places"),
        *(step for seed in (1, 2) for step in again(seed)),
    ]


def places(run: str, *overrides: str) -> Step:
    """LangDC on captions that say where objects are, from stage 2's density captions on."""
    names = [f"sample/langdc/{name}" for name in ("stage2_density", "stage2_align", "stage2_post", "stage3")]
    output = f"runs/sample/{run}"
    changes = ["train.data=[data/places/train.jsonl]", *overrides, f"output={output}"]
    return langdc(run, "train", *names, *changes, done=f"{output}/stage3/finished.json")


def again(seed: int) -> list[Step]:
    """Pooling, LangDC and its variants with another seed; variants start from the captioner of that seed."""
    new, start = f"seed={seed}", f"start=runs/sample/langdc-seed{seed}/stage2_post"
    return [
        *(train(name, f"{name}-seed{seed}", new) for name in ("pool", "langdc")),
        *(train(name, f"{name}-seed{seed}", new, start) for name in ("grounded", "joint", "dual")),
        places(f"places-seed{seed}", new),
    ]


def finished(run: str) -> dict:
    """The training record of a run."""
    return json.loads((ROOT / f"runs/sample/{run}/finished.json").read_text())


def equal_flops() -> Step:
    """The baseline with as many steps as LangDC's training FLOPs, all runs together, pay for."""
    runs = yaml.safe_load((ROOT / "configs/sample/langdc/chain.yaml").read_text())
    budget = sum(finished(f"langdc/{Path(name).stem}")["flops"] for name in runs)
    usual = finished("pool")
    steps = max(1, round(budget / (usual["flops"] / usual["steps"])))
    return train("pool", "pool-flops", f"train.steps={steps}")


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
        code = run_command([sys.executable, *step.command], cwd=ROOT)
        if code:
            console.print(f"{step.title} ended with exit code {code}; mend it and start again.", style="red")
            raise SystemExit(code)
        console.print(f"{time.monotonic() - started:.0f} s", style="dim")
    return time.monotonic() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quick steps, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("--full", action="store_true", help="also the other poolings, ablations and seeds")
    options = parser.parse_args(argv)
    name = "eval_full" if options.full else "eval"
    if options.full:
        seconds = run([*main_runs(), *more_steps()])
        seconds += run([equal_flops(), *evaluate(name)])
    else:
        seconds = run([*main_runs(), *evaluate(name)])
    console.print(f"\nAll steps: {seconds / 60:.1f} minutes. The report: runs/sample/{name}/report.html", style="bold")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
