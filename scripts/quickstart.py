"""python scripts/quickstart.py [--full]

The main job end to end on the built-in sample: make videos, train LangDC (stages 1 to 3) and average pooling (stage 3)
from the model that ships, evaluate both beside training-free methods and controls, write the report. Every step is a
command that is printed before it runs and can be typed by hand; the same call resumes after the last finished step.
With --full: also other trained compressors with the same budget, LangDC's variants, three seeds of each, and a pool
given LangDC's training FLOPs. These are trained two at a time with a thread each; what they print is in runs/sample.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from langdc.failures import Ended, guarded, run_command

# as many tokens as the dual form reads
DIVERSE = "model.compressor.members=[{name: pool, sides: [4, 4]}, {name: divprune, tokens: 48}]"
TWO = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
ROOT = Path(__file__).resolve().parent.parent
console = Console(markup=False, emoji=False)


@dataclass(frozen=True)
class Step:
    """One command, the file that shows it is done, and the one that has to be there before."""

    title: str
    command: list[str]
    done: Path | None = None
    needs: Path | None = None

    @property
    def is_done(self) -> bool:
        """Whether it was run before."""
        return self.done is not None and self.done.is_file()


def langdc(title: str, *words: str, done: str = "", needs: str = "") -> Step:
    """A subcommand of `langdc`."""
    files = (ROOT / name if name else None for name in (done, needs))
    return Step(title, ["-m", "langdc.cli", *words], *files)


def train(config: str, run: str = "", *overrides: str, needs: str = "") -> Step:
    """Train a config of the sample, a folder's runs in order; `run` names another folder of outputs."""
    run = run or config
    output, last = f"runs/sample/{run}", "/stage3" if (ROOT / f"configs/sample/{config}").is_dir() else ""
    placed = [] if run == config else [f"output={output}"]
    words = ("train", f"sample/{config}", *overrides, *placed)
    return langdc(run, *words, done=f"{output}{last}/finished.json", needs=needs)


def evaluate(name: str) -> list[Step]:
    """Evaluate the rows of configs/sample/NAME.yaml in two processes and write the report."""
    return [
        Step("evaluation", [*TWO, "eval/run.py", "--config", f"configs/sample/{name}.yaml"]),
        Step("report", ["eval/table.py", f"runs/sample/{name}"]),
    ]


def main_runs() -> list[Step]:
    """The data, LangDC and the baseline."""
    first = "runs/sample/langdc/stage2_density/finished.json"  # the first to read features of videos
    return [
        langdc("sample videos", "data", "sample", "--out", "data/sample", done="data/sample/dataset.json"),
        Step("encoder features", [*TWO, "data_prep/features.py", "--train", "sample/pool"], ROOT / first),
        train("langdc"),
        train("pool"),
    ]


def data_with_places() -> Step:
    """The same videos, with captions that say where objects are."""
    words = ("data", "sample", "--places", "--out", "data/places")
    return langdc("captions with places", *words, done="data/places/dataset.json")


def more_runs() -> list[Step]:
    """What `make sample-full` trains, the longest first."""
    seeds = (1, 2)
    return [
        equal_flops(),
        *(train("langdc", f"langdc-seed{seed}", f"seed={seed}") for seed in seeds),
        places("places"),
        *(places(f"places-seed{seed}", f"seed={seed}") for seed in seeds),
        *(variant(name, seed) for name in ("joint", "grounded", "dual") for seed in (0, *seeds)),
        train("vidcom2", "divprune48", DIVERSE),
        *(train("vidcom2", f"divprune48-seed{seed}", DIVERSE, f"seed={seed}") for seed in seeds),
        *(train(name) for name in ("resampler", "matryoshka", "selector", "ldpv2", "vidcom2")),
        *(train("pool", f"pool-seed{seed}", f"seed={seed}") for seed in seeds),
    ]


def places(run: str, *overrides: str) -> Step:
    """LangDC on captions that say where objects are, from stage 2's density captions on."""
    names = [f"sample/langdc/{name}" for name in ("stage2_density", "stage2_align", "stage2_post", "stage3")]
    output = f"runs/sample/{run}"
    changes = ["train.data=[data/places/train.jsonl]", *overrides, f"output={output}"]
    return langdc(run, "train", *names, *changes, done=f"{output}/stage3/finished.json")


def variant(name: str, seed: int) -> Step:
    """A variant of LangDC, from the captioner of the same seed."""
    if not seed:
        return train(name)
    start = f"runs/sample/langdc-seed{seed}/stage2_post"
    return train(name, f"{name}-seed{seed}", f"seed={seed}", f"start={start}", needs=f"{start}/finished.json")


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


def run(steps: list[Step]) -> None:
    """Run the steps that are not done. A step that fails ends the program with its exit code."""
    for number, step in enumerate(steps, 1):
        head = f"[{number}/{len(steps)}] {step.title}"
        if step.is_done:
            console.print(f"{head}: done before", style="dim")
            continue
        console.print(f"\n{head}", style="bold")
        show(step)
        started = time.monotonic()
        code = run_command([sys.executable, *step.command], cwd=ROOT)
        check(step, code)
        console.print(f"{time.monotonic() - started:.0f} s", style="dim")


def run_two_at_once(steps: list[Step]) -> None:
    """Run the steps that are not done, each when what it needs is there; as `run`."""
    waiting = [step for step in steps if not step.is_done]
    running: dict[subprocess.Popen, tuple[Step, float]] = {}
    try:
        while waiting or running:
            ready = [step for step in waiting if step.needs is None or step.needs.is_file()]
            if not ready and not running:
                raise ValueError(_stuck(waiting[0]))
            while ready and len(running) < 2:
                waiting.remove(step := ready.pop(0))
                running[start(step)] = step, time.monotonic()
            time.sleep(0.5)
            for process in [process for process in running if process.poll() is not None]:
                step, started = running.pop(process)
                check(step, process.returncode, f" Its output: {log_of(step).relative_to(ROOT)}.")
                console.print(f"{step.title}: {time.monotonic() - started:.0f} s", style="dim")
    except BaseException as error:
        if type(error) is not KeyboardInterrupt:  # Ctrl-C, which the terminal sends to all
            for process in running:
                process.send_signal(error.args[0] if isinstance(error, Ended) else signal.SIGTERM)
        for process in running:
            process.wait()
        raise


def _stuck(step: Step) -> str:
    """Why a step can never start: what it needs is there no more, and no other step makes it."""
    assert step.needs is not None
    file = step.needs.relative_to(ROOT)
    return (
        f"{step.title} needs {file}, which is not there, and no step that is left makes it. Bring it back, or delete "
        f"{Path(*file.parts[:3])}, so that it is trained again; then start again."
    )


def log_of(step: Step) -> Path:
    """The file that a step prints into."""
    return ROOT / f"runs/sample/{step.title}.log"


def start(step: Step) -> subprocess.Popen:
    """Begin a step on one thread, which prints into a file."""
    log = log_of(step)
    console.print(f"\n{step.title}, which prints into {log.relative_to(ROOT)}", style="bold")
    show(step)
    with log.open("ab") as out:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *step.command], cwd=ROOT, env=environment, stdout=out, stderr=out)


def show(step: Step) -> None:
    """Print the command of a step."""
    console.print(f"$ python {' '.join(step.command)}", style="cyan", soft_wrap=True, highlight=False)


def check(step: Step, code: int, where: str = "") -> None:
    """End the program with the exit code of a step that failed; `where` says where its messages are."""
    if code:
        text = f"{step.title} ended with exit code {code}; mend it and start again.{where}"
        console.print(text, style="red", soft_wrap=True)
        raise SystemExit(code if code > 0 else 128 - code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quick steps, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("--full", action="store_true", help="also all other trained compressors, variants and seeds")
    options = parser.parse_args(argv)
    name, began = "eval_full" if options.full else "eval", time.monotonic()
    if options.full:
        run([*main_runs(), data_with_places()])
        run_two_at_once(more_runs())
        run(evaluate(name))
    else:
        run([*main_runs(), *evaluate(name)])
    seconds = time.monotonic() - began
    text = f"\nThis call took {seconds / 60:.1f} minutes. The report: runs/sample/{name}/report.html"
    console.print(text, style="bold")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
