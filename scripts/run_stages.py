"""python scripts/run_stages.py CONFIG_DIR [--launcher deepspeed] [--launcher-args "--num_gpus 8"] [key=value ...]

Run all stages whose configs are in a folder, each from the checkpoint of the one before: stage files are chained by
their `start` and `output`. The plan is printed first, with each command, which can be typed by hand. What is finished
is not repeated, what was interrupted goes on, and the first stage that fails ends the chain. With --plan nothing runs.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from langdc import config as settings
from langdc.config import StageConfig
from langdc.training import runs

ROOT = Path(__file__).resolve().parent.parent
GOES_ON = (75, 130)  # how a stage ends that was stopped by a signal, saved or not


@dataclass(frozen=True)
class Step:
    """A stage file and what it says."""

    file: Path
    config: StageConfig

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file.stem

    @property
    def finished(self) -> Path | None:
        """The newest run of it that is done."""
        return runs.latest(self.config.output)

    @property
    def lacking(self) -> list[Path]:
        """Data files that are not there."""
        return [path for phase in self.config.phases for path in phase.data if not path.is_file()]


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all stages are done, 2 for a mistake in the settings, 130 when interrupted, or as the last stage ended."""
    options = _parser().parse_intermixed_args(argv)
    console = Console(soft_wrap=True, highlight=False)
    try:
        steps = ordered(read_steps(options.folder, options.overrides, options.only))
        _print_plan(steps, options, console)
        return 0 if options.plan else _run(steps, options, console)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def read_steps(folder: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> list[Step]:
    """The stage files of a folder, by name; files that say no stage (a model, common settings) are passed over."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. configs/langdc_3b is one with stage files.")
    files = [file for file in sorted(folder.glob("*.yaml")) if _says_stage(file)]
    unknown = sorted(set(only) - {file.stem for file in files})
    if unknown or not files:
        named = ", ".join(file.stem for file in files) or "none"
        raise ValueError(
            f"{folder} has the stage files: {named}" + (f"; not {', '.join(unknown)}." if unknown else ".")
        )
    return [Step(file, settings.load(StageConfig, file, overrides)) for file in files if not only or file.stem in only]


def _says_stage(file: Path) -> bool:
    """Whether a file, or one it extends, names a stage; what cannot be read counts, so that loading it says why."""
    seen: set[Path] = set()
    while file not in seen:
        seen.add(file)
        try:
            tree = yaml.safe_load(file.read_text()) or {}
        except (OSError, yaml.YAMLError):
            return True
        if "stage" in tree or "extends" not in tree:
            return "stage" in tree
        file = (file.parent / tree["extends"]).resolve()
    return True


def ordered(steps: Sequence[Step]) -> list[Step]:
    """Each stage after the one whose output it starts from; ValueError if two write to one place, or for a circle."""
    outputs: dict[Path, Step] = {}
    for step in steps:
        other = outputs.setdefault(step.config.output, step)
        if other is not step:
            raise ValueError(f"{other.file} and {step.file} have the same output, {step.config.output}.")
    done: list[Step] = []
    waiting = list(steps)
    while waiting:
        ready = [step for step in waiting if step.config.start not in {other.config.output for other in waiting}]
        if not ready:
            raise ValueError(f"These start from one another's output: {', '.join(step.name for step in waiting)}.")
        done.append(ready[0])
        waiting.remove(ready[0])
    return done


def _print_plan(steps: Sequence[Step], options: argparse.Namespace, console: Console) -> None:
    outputs = {step.config.output for step in steps}
    for number, step in enumerate(steps, 1):
        state = "done" if step.finished else "goes on" if step.config.output.is_dir() else "to do"
        phases = ", ".join(phase.name for phase in step.config.phases)
        console.print(f"[{number}/{len(steps)}] {step.name}: {step.config.stage} ({phases}), {state}", style="bold")
        if step.finished:
            console.print(f"  {step.finished}", style="dim")
            continue
        console.print(f"  $ {shlex.join(_command(step, options))}", style="cyan", markup=False)
        for path in step.lacking:
            console.print(f"  missing: {path}", style="red")
        start = step.config.start
        if start is not None and start not in outputs and runs.latest(start) is None:
            console.print(f"  missing: a finished run in {start}", style="red")


def _run(steps: Sequence[Step], options: argparse.Namespace, console: Console) -> int:
    for number, step in enumerate(steps, 1):
        if step.finished:
            continue
        if step.lacking:
            named = ", ".join(map(str, step.lacking))
            raise ValueError(f"{step.name} lacks its data: {named}. The head of {step.file} says how to make it.")
        command = _command(step, options)
        console.print(f"\n[{number}/{len(steps)}] $ {shlex.join(command)}", style="cyan", markup=False)
        code = subprocess.run(command, check=False).returncode
        if code in GOES_ON:
            print(f"{step.name} was stopped. The same command goes on from its last checkpoint.", file=sys.stderr)
            return code
        if code or step.finished is None:
            named = f"ended with status {code}" if code else "left no finished run"
            print(f"{step.name} {named}; its message is above. Mend it and give the same command.", file=sys.stderr)
            return code or 1
    console.print(f"\nAll {len(steps)} stages are done: {steps[-1].finished}", style="bold")
    return 0


def _command(step: Step, options: argparse.Namespace) -> list[str]:
    extra = shlex.split(options.launcher_args)
    launcher = ["-m", "deepspeed.launcher.runner", *extra] if options.launcher == "deepspeed" else []
    command = [sys.executable, *launcher, str(ROOT / "train" / f"{step.config.stage}.py"), "--config", str(step.file)]
    command += [*options.overrides, *(["--no-verify-save"] if options.no_verify_save else [])]
    start = step.config.start
    newest = runs.latest(start) if start is not None else None
    if newest is not None and newest != start:
        command.append(f"start={newest}")  # the first run's directory holds no or an older one
    return command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/run_stages.py", description="Run the stages of a folder in order.")
    parser.add_argument("folder", type=Path, metavar="CONFIG_DIR", help="a folder of stage files")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of every stage, as precision=float16"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these stage files, by name")
    parser.add_argument("--launcher", choices=("python", "deepspeed"), default="python", help="what starts a stage")
    parser.add_argument("--launcher-args", default="", metavar="TEXT", help='as "--hostfile hosts --num_gpus 8"')
    parser.add_argument("--no-verify-save", action="store_true", help="do not load what the stages saved again")
    parser.add_argument("--plan", action="store_true", help="print the plan and end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
