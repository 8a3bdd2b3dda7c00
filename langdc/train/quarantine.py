"""Records that `langdc data check` found unfit: refused before the first step, or left out where the run says so."""

from contextlib import nullcontext, suppress
from pathlib import Path

from langdc import jsonl
from langdc.config import TrainConfig
from langdc.data.records import Record, listed, read_records
from langdc.log import get_logger

logger = get_logger(__name__)

FOLDER, FILE = ".check", "quarantine.jsonl"
"""What `folder_of` adds to a name, and the list in that folder."""


def folder_of(file: Path) -> Path:
    """Where a file is checked into by default: mine.jsonl into mine.check beside it, mine.csv into mine.csv.check."""
    return file.with_name(f"{file.stem if file.suffix == '.jsonl' else file.name}{FOLDER}")


def listed_files(path: Path) -> set[Path]:
    """The files that a list names."""
    return {(path.parent / str(one.get("file"))).resolve() for one in jsonl.read(path)} if path.is_file() else set()


def check_list(train: TrainConfig) -> None:
    """ValueError if `train.quarantine` lists records, and none of a file that the run reads."""
    held = train.validation.data if train.validation is not None else []
    if train.quarantine is None or not (named := listed_files(train.quarantine)):
        return
    if not named & {file.resolve() for file in (*train.files, *held)} and all(file.is_file() for file in named):
        raise ValueError(
            f"train.quarantine: {train.quarantine} lists records of {', '.join(sorted(map(str, named)))}, and the run "
            f"reads {', '.join(map(str, train.files))}. Give the list of these, or leave it out."
        )


def read_kept(file: Path, train: TrainConfig) -> list[Record]:
    """The records of a data file without those that `train.quarantine` lists; ValueError as in `left_out`."""
    return read_records(file, without={one["line"] for one in left_out(file, train)})


def left_out(file: Path, train: TrainConfig) -> list[dict]:
    """What `train.quarantine` lists of a file, of which the log says how many.

    A list has lines {"file": relative to the list's folder, "line", "id"}. ValueError for one that does not fit the
    data, and, where none is given, for records that the check of this file has listed beside it.
    """
    if train.quarantine is not None:
        found = _entries(train.quarantine, file)
        numbers = {one["line"] for one in found}
        with file.open("rb") if found else nullcontext(()) as lines:
            known = {number: _id(line) for number, line in enumerate(lines, 1) if number in numbers and line.strip()}
        for one in found:
            if one["line"] not in known or known[one["line"]] not in (None, one.get("id")):
                raise ValueError(
                    f"{train.quarantine} names line {one['line']} (id {one.get('id')!r}) of {file}, which has no such "
                    "record. Run `langdc data check` again."
                )
        logger.info("%s: %d records are left out by %s.", file, len(found), train.quarantine)
        return found
    beside = folder_of(file) / FILE
    found = _entries(beside, file) if beside.is_file() and file.is_file() else []
    if found and beside.stat().st_mtime < file.stat().st_mtime:
        logger.warning("%s was changed after `langdc data check` had listed %s; check it again.", file, beside)
    elif found:
        lines = [f"line {one['line']} (id {one.get('id')!r}): {'; '.join(one.get('reasons', []))}" for one in found]
        raise ValueError(
            listed(f"{file} has {len(lines)} record(s) that `langdc data check` refuses", lines)
            + f"\nCorrect them and check again, or train on the rest: train.quarantine={beside}"
        )
    return []


def _id(line: bytes) -> str | None:
    """What a line names as its id; None where it cannot be read."""
    with suppress(ValueError):
        return name if isinstance(name := jsonl.parse(line).get("id"), str) else None


def _entries(path: Path, file: Path) -> list[dict]:
    """What a list says of a data file; ValueError for a list that names a file that is not there."""
    if not path.is_file():
        raise ValueError(f"train.quarantine: there is no file {path}. `langdc data check` writes one.")
    found = []
    for one in jsonl.read(path, strict=True):
        if not isinstance(one.get("file"), str) or not isinstance(one.get("line"), int):
            raise ValueError(f"{path}: {one} names no file and line. `langdc data check` writes such a list.")
        there = path.parent / one["file"]
        if not there.is_file():
            raise ValueError(f"{path} names {there}, which is not there. Run `langdc data check` again.")
        found += [one] if there.resolve() == file.resolve() else []
    return found
