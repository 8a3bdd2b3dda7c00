"""Output directories: a finished run is never overwritten, an unfinished one is resumed, nothing is mixed.

A run's directory holds `config.yaml` (all settings), `run.json` (processes, package versions, hashes of the files that
decide what is learned), `media.json` (sizes of videos and images), `log.jsonl` and, when all is done, the checkpoint
and, written last, `finished.json`. While a process writes to it, `.lock` is locked.
"""

import glob
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from langdc import __version__, checkpoint, distributed, jsonl
from langdc import config as settings
from langdc.config import DataConfig, RunConfig
from langdc.evaluate.models import model_files, named_files
from langdc.hashing import file_hash, quick_hash
from langdc.jsonl import read_json
from langdc.log import get_logger

logger = get_logger(__name__)

FINISHED = "finished.json"
RUN = "run.json"
MEDIA = "media.json"
SETTINGS = "config.yaml"
LOG = "log.jsonl"
RESUME = "resume"
BEST = "best"
"""The checkpoint with the lowest validation loss."""
COMPLETE = "complete"
"""File that a complete Trainer checkpoint has: the hashes of its other files."""
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


def mark_complete(folder: Path) -> None:
    """Mark a checkpoint as complete, once its files, and the logs up to its step, are on the disk."""
    jsonl.flush(*folder.parents[1].glob("*.jsonl"))
    jsonl.sync_folder(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    jsonl.write_json(folder / COMPLETE, {str(path.relative_to(folder)): quick_hash(path) for path in files})


def newest_whole(directory: Path) -> Path | None:
    """The newest complete checkpoint whose files are unchanged; None if there is no checkpoint.

    Damaged ones after it are named in a warning and no longer count; ValueError if all are damaged.
    """
    damaged: dict[Path, Path] = {}
    for path in reversed(checkpoints(directory)):
        if (file := _damaged_file(path)) is None:
            for other, file in damaged.items():
                logger.warning("%s is damaged (%s); resuming from %s before it.", other, file.name, path.name)
                (other / COMPLETE).unlink()
            return path
        damaged[path] = file
    if damaged:
        files = ", ".join(map(str, damaged.values()))
        raise ValueError(f"No checkpoint can be resumed from: {files} is damaged. Delete {directory} to begin again.")
    return None


def _damaged_file(folder: Path) -> Path | None:
    """The first file of a checkpoint that is missing, unreadable or changed; None if all are as they were written."""
    path = folder / COMPLETE
    try:
        stated = json.loads(path.read_text() or "{}")  # before 0.3 it was empty
        for name in stated:
            path = folder / name
            if quick_hash(path) != stated[name]:
                return path
        empty = (path for path in folder.rglob("*") if not stated and path.name != COMPLETE and path.is_file())
        return next((path for path in empty if not path.stat().st_size), None)
    except (OSError, ValueError):
        return path


def _is_finished(directory: Path) -> bool:
    return (directory / FINISHED).is_file()


def _numbered(base: Path) -> dict[int, Path]:
    """The existing directories `base`, `base-2`, `base-3`, ... by number, oldest first."""
    there = base.parent.glob(f"{glob.escape(base.name)}*")
    ends = {path.name.removeprefix(base.name): path for path in there if path.is_dir()}
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
    lock = jsonl.locked(directory / jsonl.LOCK, f"still writes into {directory}", LOCK_TIMEOUT_SECONDS)
    try:
        # what a run has begun that is refused, or fails before its first line of the log, goes again
        held.enter_context(jsonl.making_folder(directory, jsonl.LOCK, SETTINGS, RUN, MEDIA))
        held.enter_context(lock)
    except OSError as error:
        reason = f"{directory} cannot be made or written ({error.strerror})"
        raise ValueError(f"output: {reason}. Choose another with output=...") from None
    if _is_finished(directory):  # by another process, while this one waited
        return _resolved(config, held)
    header = read_json(directory / RUN) if (directory / RUN).is_file() else {}
    packages = {"langdc": __version__} | {
        found.name: found.version for found in distributions() if found.name in PACKAGES
    }
    now = _files(config)
    if checkpoints(directory / RESUME):
        if lines := _differences(directory, config, header, now):
            raise ValueError(
                f"{directory} holds an unfinished run with other settings or data:\n{lines}\n"
                f"Resume with the same ones, choose another place with output=..., or delete {directory}."
            )
        with tempfile.TemporaryFile(dir=directory) as new:  # on a file system of a network it may not be os.getuid()
            owner = os.fstat(new.fileno()).st_uid
        if others := [path for path in (directory / RESUME).rglob("*") if path.stat().st_uid != owner]:
            raise ValueError(
                f"{others[0]} belongs to another user, and DeepSpeed may run code that is in it. If you trust it, make "
                "it your own (chown), or choose another place with output=..."
            )
        logger.info("Resuming the unfinished run in %s.", directory)
        for name, version in packages.items():
            if (before := header.get("packages", {}).get(name, version)) != version:
                logger.warning("%s was begun with %s %s; this is %s.", directory, name, before, version)
    else:  # also where a run ended at once for a mistake in its settings
        others = jsonl.names_in(directory)
        if others and not (directory / SETTINGS).is_file():
            raise ValueError(f"{directory} holds files that are no training run. Choose another place with output=...")
        if "phases" in others or any(directory.glob(f"{RESUME}/*/checkpoint-*")):
            raise ValueError(
                f"{directory} holds an unfinished run of version 0.1, which this version cannot resume. Finish it with "
                "0.1, or choose another place with output=..."
            )
        (directory / LOG).unlink(missing_ok=True)
        (directory / MEDIA).unlink(missing_ok=True)
        if not header or _differences(directory, config, header, now):
            for path in directory.rglob("replies-*.jsonl"):  # written under other settings
                path.unlink()
    # the settings come first: a folder without them counts as somebody else's
    settings.save(config, directory / SETTINGS)
    jsonl.write_json(directory / RUN, {"processes": distributed.world_size(), "packages": packages, "files": now})
    return directory


def check_unchanged(config: RunConfig, directory: Path, media: Sequence[Path]) -> None:
    """ValueError if a file changed while it was read, or if a resumed run's video or image has another size."""
    if lines := _changes(config, read_json(directory / RUN)["files"], _files(config)):
        raise ValueError("\n".join(["Files were changed while they were read. Start again:", *lines]))
    sizes = [sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())) for path in media]
    before = read_json(directory / MEDIA) if (directory / MEDIA).is_file() else sizes
    resized = [path for path, now, then in zip(media, sizes, before, strict=False) if now != then]
    if resized:
        raise ValueError(
            f"{directory} holds an unfinished run on other videos or images: {len(resized)} have another size, such as "
            f"{resized[0]}. Restore them, or choose another place with output=..."
        )
    jsonl.write_json(directory / MEDIA, sizes)


def _files(config: RunConfig) -> dict[str, dict[str, str]]:
    """Hashes of the files that decide what is learned: by setting, then by file name ("" for a single file)."""
    train, held = config.train, config.train.validation
    single = {"train.quarantine": train.quarantine, "deepspeed": config.deepspeed}
    single |= {f"train.validation.data.{number}": path for number, path in enumerate(held.data if held else ())}
    found = {name: {"": file_hash(path)} if path.is_file() else {} for name, path in single.items() if path is not None}
    for number, entry in enumerate(train.data):
        path, files = train.sets[number].path, train.sets[number].files
        name = f"train.data.{number}{'.path' * isinstance(entry, DataConfig)}"
        found[name] = {file.name * (file != path): file_hash(file) for file in files if file.is_file()}
    if config.start is not None:
        found["start"] = model_files(config.start)
    tree = config.model.model_dump(mode="json")
    named = named_files(tree)
    places = {".".join(map(str, ("model", *keys))): text for keys, text in checkpoint.texts(tree)}
    return found | {place: named[text] for place, text in places.items() if text in named}


def _changes(config: RunConfig, before: Mapping[str, dict], now: Mapping[str, dict]) -> list[str]:
    """A line for each file of `_files` that changed, is new, or is missing."""
    paths, lines = _flat(config.model_dump(mode="json")), list[str]()
    for setting, files in now.items():
        known, what = before.get(setting, {}), "records" if setting.startswith("train.") else "contents"
        for name in sorted(name for name in known.keys() | files.keys() if known.get(name) != files.get(name)):
            change = "is not there" if name not in files else "is new" if name not in known else f"holds other {what}"
            lines.append(f"  {setting}: {Path(paths[setting], name)} {change}")
    return lines


def _differences(directory: Path, config: RunConfig, header: Mapping[str, Any], now: dict[str, dict[str, str]]) -> str:
    """A line for each setting and file that differs from the unfinished run; "" if there are none.

    Files are compared by content, so that a run and its data may be moved.
    """
    before, known = settings.load(RunConfig, directory / SETTINGS), header.get("files")
    lines = _changes(config, known, now) if known is not None else []  # before 0.3 there were none
    return changed(before, config, header.get("processes"), lines, {"output", *(now.keys() & (known or {}).keys())})


def changed(
    before: RunConfig,
    now: RunConfig,
    processes: int | None = None,
    more: Sequence[str] = (),
    without: Collection[str] = (),
) -> str:
    """A line for each setting that would change trained numbers, and `more` lines; "" if there are none.

    `processes`: the number that the earlier run had; `without`: settings that do not count.
    """
    free: Any = {**dict.fromkeys(RESUME_SAFE_FIELDS, True), "train": {"allow_outside"}}
    then, given = (_flat(config.model_dump(mode="json", exclude=free)) for config in (before, now))
    if processes is not None and processes != distributed.world_size():
        then, given = _per_step(then, processes), _per_step(given, distributed.world_size())
    keys = [key for key in {**then, **given} if then.get(key) != given.get(key) and key not in without]
    lines = [f"  {key}: {then.get(key)!r} before, {given.get(key)!r} now" for key in keys]
    return "\n".join([*lines, *more])


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
