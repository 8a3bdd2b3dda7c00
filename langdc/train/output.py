"""Output directories: a finished run is never overwritten, an unfinished one is resumed, nothing is mixed.

A run's directory holds `config.yaml` (all settings), `run.json` (processes, package versions, hashes of the record
files), `log.jsonl` (a line per logging step) and, when all is done, the checkpoint and, written last, `finished.json`.
While a process writes to it, `.lock` is locked.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from langdc import config as settings
from langdc import distributed, jsonl
from langdc.config import RunConfig
from langdc.hashing import file_hash
from langdc.log import get_logger

logger = get_logger(__name__)

FINISHED = "finished.json"
RUN = "run.json"
SETTINGS = "config.yaml"
LOG = "log.jsonl"
RESUME = "resume"
BEST = "best"
"""The checkpoint with the lowest validation loss."""
LOCK = ".lock"
COMPLETE = "complete"
"""File of a Trainer checkpoint that was written to its end."""
LOCK_TIMEOUT_SECONDS = 10.0
"""Worker processes of a run that was killed hold its lock until they notice."""
RESUME_SAFE_FIELDS = frozenset(
    {
        "stage",
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
"""Settings that change no trained number, so a run may be resumed with other values."""
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft")


def latest(base: Path) -> Path | None:
    """The newest finished run of a base name; None when there is none."""
    return next((path for path in reversed(_numbered(base).values()) if _is_finished(path)), None)


def checkpoints(directory: Path) -> list[Path]:
    """The complete Trainer checkpoints in a directory, oldest first; one that a kill cut short does not count."""
    found = [path.parent for path in directory.glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _is_finished(directory: Path) -> bool:
    return (directory / FINISHED).is_file()


def _numbered(base: Path) -> dict[int, Path]:
    """The existing directories `base`, `base-2`, `base-3`, ... by number, oldest first."""
    ends = {path.name.removeprefix(base.name): path for path in base.parent.glob(f"{base.name}*") if path.is_dir()}
    found = {int(end[1:] or 1): path for end, path in ends.items() if re.fullmatch(r"|-([2-9]|[1-9]\d+)", end)}
    return dict(sorted(found.items()))


@contextmanager
def resolve_output_dir(config: RunConfig) -> Iterator[Path]:
    """The directory to write to, locked against other runs; the first process decides, all get the same one.

    Raises ValueError when the newest directory holds an unfinished run with other settings or data, or other files, and
    when another run writes to it.
    """
    with ExitStack() as held:
        found: list[Path] = []
        distributed.main_process_first(lambda: found.append(_resolved(config, held)))
        yield distributed.broadcast(found[0] if found else config.output)


def _resolved(config: RunConfig, held: ExitStack) -> Path:
    number, directory = next(reversed(_numbered(config.output).items()), (1, config.output))
    if _is_finished(directory):
        finished, directory = directory, config.output.with_name(f"{config.output.name}-{number + 1}")
        logger.info("%s holds a finished run; this one goes to %s.", finished, directory)
    _lock(directory, held)
    if _is_finished(directory):  # by another process, while this one waited
        return _resolved(config, held)
    if checkpoints(directory / RESUME):
        if lines := _differences(directory, config):
            raise ValueError(
                f"{directory} holds an unfinished run with other settings or data:\n{lines}\n"
                f"Resume with the same ones, choose another place with output=..., or delete {directory}."
            )
        logger.info("Resuming the unfinished run in %s.", directory)
    else:  # also where a run ended at once for a mistake in its settings
        others = {path.name for path in directory.iterdir()} - {LOCK, f"{SETTINGS}.partial"}
        if others and not (directory / SETTINGS).is_file():
            raise ValueError(f"{directory} holds files that are no training run. Choose another place with output=...")
        if "phases" in others or any(directory.glob(f"{RESUME}/*/checkpoint-*")):
            raise ValueError(
                f"{directory} holds an unfinished run of version 0.1, which this version cannot resume. Finish it with "
                "0.1, or choose another place with output=..."
            )
        (directory / LOG).unlink(missing_ok=True)
        if not (directory / RUN).is_file() or _differences(directory, config):
            for path in directory.rglob("replies-*.jsonl"):  # written under other settings
                path.unlink()
    # the settings come first: a folder without them counts as somebody else's
    settings.save(config, directory / SETTINGS)
    files = [*_learned(config), *([config.watch.data] if config.watch is not None else [])]
    hashes = {str(path): file_hash(path) for path in files if path.is_file()}
    packages = {found.name: found.version for found in distributions() if found.name in PACKAGES}
    header = {"processes": distributed.world_size(), "packages": packages, "data": hashes}
    jsonl.write_json(directory / RUN, header)
    return directory


def _learned(config: RunConfig) -> list[Path]:
    """The record files that decide what is learned."""
    held_out = config.train.validation
    return [*config.train.files, *(held_out.data if held_out is not None else [])]


def _lock(directory: Path, held: ExitStack) -> None:
    """Make a directory and lock it until `held` ends."""
    try:
        # what a run has begun that is refused, or fails before its first line of the log, goes again
        held.enter_context(jsonl.making_folder(directory, LOCK, SETTINGS, RUN))
        held.enter_context(FileLock(directory / LOCK, timeout=LOCK_TIMEOUT_SECONDS))
    except Timeout:
        raise ValueError(
            f"Another process is training into {directory}. Wait for it, or choose another place with output=..."
        ) from None
    except OSError as error:
        reason = f"{directory} cannot be made or written ({error.strerror})"
        raise ValueError(f"output: {reason}. Choose another with output=...") from None


def _differences(directory: Path, config: RunConfig) -> str:
    """A line for each setting and record file that differs from those of the unfinished run; "" if there are none."""
    header = jsonl.read_json(directory / RUN)
    now = {str(path): file_hash(path) for path in _learned(config) if path.is_file()}
    others = [f"{path} holds other records" for path in now if header["data"].get(path, now[path]) != now[path]]
    return changed(settings.load(RunConfig, directory / SETTINGS), config, header["processes"], others)


def changed(before: RunConfig, now: RunConfig, processes: int | None = None, more: Iterable[str] = ()) -> str:
    """A line for each setting that would change trained numbers, and `more` lines; "" if there are none.

    `processes`: how many the run before had.
    """
    then, given = (_flat(each.model_dump(mode="json", exclude=set(RESUME_SAFE_FIELDS))) for each in (before, now))
    if processes is not None and processes != distributed.world_size():
        then, given = _per_step(then, processes), _per_step(given, distributed.world_size())
    other = [key for key in {**then, **given} if then.get(key) != given.get(key)]
    lines = [f"{key}: {then.get(key)!r} before, {given.get(key)!r} now" for key in other]
    return "\n".join(f"  {line}" for line in [*lines, *more])


def _per_step(leaves: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """Settings in which the samples of a step stand for how they are divided: the steps are the same."""
    found = dict(leaves)
    batch, accumulated = found.pop("train.batch_size"), found.pop("train.gradient_accumulation")
    found["samples of a step (processes x batch_size x gradient_accumulation)"] = processes * batch * accumulated
    return found


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted path; list items by number."""
    if not (isinstance(tree, dict | list) and tree):
        return {prefix.removesuffix("."): tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {key: leaf for name, item in items for key, leaf in _flat(item, f"{prefix}{name}.").items()}
