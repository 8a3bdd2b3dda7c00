"""Output directories: a finished run is never overwritten, an unfinished one is continued, nothing is mixed.

A run's directory holds `config.yaml` (all settings), `run.json` (processes, package versions), `log.jsonl` (a line per
logging step), `phases/` and, when all is done, the checkpoint and `finished.json`, which is written last.
"""

import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from langdc import config as settings
from langdc import distributed
from langdc.config import StageConfig
from langdc.distributed import is_main_process, world_size
from langdc.jsonl import write_json
from langdc.log import get_logger

logger = get_logger(__name__)

FINISHED = "finished.json"
COMPLETE = "complete"  # in a Trainer checkpoint that was written to its end
# Settings that change no trained number, so a run may go on with other values.
HARMLESS = frozenset(
    {
        "save_steps",
        "keep_checkpoints",
        "log_steps",
        "workers",
        "trackers",
        "features",
        "feature_memory",
        "watch",
        "peak_flops",
        "watchdog",
        "verify_save",
    }
)
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft")


@dataclass(frozen=True)
class Run:
    """A directory that this run may write to, and whether it continues what is there."""

    directory: Path
    resumed: bool


def is_finished(directory: Path) -> bool:
    """Whether a run ended as planned."""
    return (directory / FINISHED).is_file()


def numbered(base: Path) -> list[Path]:
    """The existing directories `base`, `base-2`, `base-3`, ..., oldest first."""
    found = {1: base} if base.is_dir() else {}
    for path in base.parent.glob(f"{base.name}-*") if base.parent.is_dir() else ():
        match = re.fullmatch(rf"{re.escape(base.name)}-(\d+)", path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return [found[number] for number in sorted(found)]


def latest(base: Path) -> Path | None:
    """The newest finished run of a base name; None when there is none."""
    return next((path for path in reversed(numbered(base)) if is_finished(path)), None)


def claim(config: StageConfig) -> Run:
    """Find the directory to write to: the first process decides, all get the same answer.

    Raises ValueError when the newest directory holds an unfinished run with other settings or other things.
    """
    answer: Run | str | None = None
    if is_main_process():
        try:
            answer = _claim(config)
        except ValueError as error:
            answer = str(error)
    answer = distributed.broadcast(answer)
    if isinstance(answer, str):
        raise ValueError(answer)
    assert answer is not None
    return answer


def _claim(config: StageConfig) -> Run:
    existing = numbered(config.output)
    newest = existing[-1] if existing else None
    if newest is None:
        return _open(config.output, config)
    if is_finished(newest):
        fresh = config.output.with_name(f"{config.output.name}-{_number(newest, config.output) + 1}")
        logger.info("%s holds a finished run; this one goes to %s.", newest, fresh)
        return _open(fresh, config)
    if not (newest / "config.yaml").is_file():
        if any(newest.iterdir()):
            raise ValueError(f"{newest} holds files that are no run of a stage. Choose another place with output=...")
        return _open(newest, config)
    if not _has_progress(newest):
        (newest / "log.jsonl").unlink(missing_ok=True)
        return _open(newest, config)
    _check_same(newest, config)
    _open(newest, config)
    logger.info("Going on with the unfinished run in %s.", newest)
    return Run(newest, resumed=True)


def _has_progress(directory: Path) -> bool:
    """Whether there is anything to go on from; a run that a mistake in its settings ended at once has nothing."""
    marks = (f"phases/*/{FINISHED}", f"resume/*/checkpoint-*/{COMPLETE}")
    return any(path for mark in marks for path in directory.glob(mark))


def _number(path: Path, base: Path) -> int:
    return 1 if path == base else int(path.name.removeprefix(f"{base.name}-"))


def _open(directory: Path, config: StageConfig) -> Run:
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "run.json", {"processes": world_size(), "packages": _versions()})
    settings.save(config, directory / "config.yaml")
    return Run(directory, resumed=False)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _check_same(directory: Path, config: StageConfig) -> None:
    before = settings.load(StageConfig, directory / "config.yaml")
    then, now = (_flat(each.model_dump(mode="json")) for each in (before, config))
    if _processes(directory) != world_size():
        then, now = _per_step(then, _processes(directory)), _per_step(now, world_size())
    keys = [key for key in {**then, **now} if key.split(".")[0] not in HARMLESS and then.get(key) != now.get(key)]
    if keys:
        lines = "\n".join(f"  {key}: {then.get(key)!r} there, {now.get(key)!r} now" for key in keys)
        raise ValueError(
            f"{directory} holds an unfinished run with other settings:\n{lines}\n"
            f"Go on with the same settings, choose another place with output=..., or delete {directory}."
        )


def _per_step(leaves: dict[str, Any], processes: int) -> dict[str, Any]:
    """Settings in which the samples of a step stand for how they are shared out: the steps are the same ones.

    A phase that is solved has no steps; every process solves all of it.
    """
    found = {}
    for key, leaf in leaves.items():
        phase, _, name = key.rpartition(".")
        if leaves.get(f"{phase}.objective") == "align":
            found[key] = leaf
        elif name == "batch_size" and phase.startswith("phases."):
            accumulated = leaves[f"{phase}.gradient_accumulation"]
            found[f"{phase}: samples of a step (processes x batch_size x gradient_accumulation)"] = (
                processes * leaf * accumulated
            )
        elif name != "gradient_accumulation":
            found[key] = leaf
    return found


def _processes(directory: Path) -> int:
    header = directory / "run.json"
    return json.loads(header.read_text())["processes"] if header.is_file() else world_size()


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted path; list items by number."""
    if isinstance(tree, dict) and tree:
        items = list(tree.items())
    elif isinstance(tree, list) and tree:
        items = [(str(number), item) for number, item in enumerate(tree)]
    else:
        return {prefix.removesuffix("."): tree}
    return {key: leaf for name, item in items for key, leaf in _flat(item, f"{prefix}{name}.").items()}
