"""A run's folder: `header.json` says what was run and on what, `rows/<row>.jsonl` what came of it, line by line.

Lines of a row, told apart by "type": "row" (how the model was loaded), "video" (tokens, captions), "answer" (one
question), "timing" (one video alone), "finished". A line has a "key"; a key that is there is not made again.
"""

import glob
import hashlib
import inspect
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from langdc import __version__, jsonl
from langdc.distributed import rank, world_size
from langdc.hashing import file_hash, text_hash

HEADER = "header.json"
BEGUN = {f"{HEADER}.partial"}
"""What a run leaves that was ended before it began, such as by a full disk."""
PACKAGES = ("torch", "torchvision", "transformers", "peft", "safetensors", "av", "decord", "numpy", "scipy")


class LineFile:
    """A file that grows by lines, each with a "key", and goes on where it stopped.

    `part`: where this process writes, if several read the file; the lines of both are known.
    """

    def __init__(self, path: Path, part: Path | None = None) -> None:
        self.path, self.part = path, path if part is None else part
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.reread()

    def reread(self) -> None:
        """Know what is in the files now."""
        self.lines = [] if self.part == self.path else jsonl.read(self.path)
        own = jsonl.read(self.part)
        known = {line["key"] for line in self.lines}
        self.lines += [line for line in own if line["key"] not in known]
        self.by_key = {line["key"]: line for line in self.lines}

    def __contains__(self, key: str) -> bool:
        return key in self.by_key

    def append(self, lines: Iterable[dict]) -> None:
        """Write lines, all but those whose key is there."""
        new = [line for line in lines if line["key"] not in self.by_key]
        jsonl.append(self.part, *new)
        self.lines += new
        self.by_key |= {line["key"]: line for line in new}

    def of(self, kind: str) -> list[dict]:
        """The lines of a type."""
        return [line for line in self.lines if line["type"] == kind]


REPORTING = ("report", "rows", "page", "sections", "adaptive", "plots", "statistics", "style", "judge", "gate", "notes")
"""Modules that read answers and make none."""


def sources_hash() -> str:
    """The sha256 of this package's sources, but for what only reads answers."""
    root = Path(__file__).parent.parent
    files = sorted(path for path in root.rglob("*.py") if path.stem not in REPORTING)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def foreign_sources(members: Iterable[Callable]) -> dict[str, str]:
    """By module the sha256 of the files in which those members of zoos are defined that come from elsewhere."""
    root = Path(__file__).parent.parent
    found = {}
    for member in members:
        path = Path(inspect.getsourcefile(member) or "")
        if path.is_file() and not path.resolve().is_relative_to(root.resolve()):
            found[member.__module__] = file_hash(path)
    return found


def identity_hash(identity: dict) -> str:
    """The sha256 of what must not change within a run folder."""
    return text_hash(json.dumps(identity, sort_keys=True))


class RunFolder:
    """The folder of one evaluation."""

    def __init__(self, directory: Path, header: dict) -> None:
        self.directory = directory
        self.header = header

    @classmethod
    def start(
        cls,
        directory: Path,
        identity: dict,
        info: dict,
        command: Sequence[str],
        judging: Mapping[str, Any] | None = None,
    ) -> "RunFolder":
        """Begin a run or go on with it. `identity`: config, weights and data, which must be those of the run there.

        `info` joins the header, and `judging`, of which it keeps the newest. Raises ValueError that lists what differs.
        """
        path = directory / HEADER
        session = describe_machine(command)
        if not path.is_file() and directory.is_dir() and {file.name for file in directory.iterdir()} - BEGUN:
            raise ValueError(f"{directory} holds files that are no evaluation. Choose another place with output=...")
        header = {**info, **identity, "identity_sha256": identity_hash(identity), "sessions": []}
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            changed = _changes({key: there.get(key) for key in identity}, json.loads(json.dumps(identity)))
            if changed:
                listed = "\n  ".join(changed[:12])
                raise ValueError(
                    f"{directory} holds an evaluation of something else:\n  {listed}\n"
                    "Choose another place with output=..., or delete that folder."
                )
            header = there
        header.update(judging or {})
        header["sessions"].append(session)
        directory.mkdir(parents=True, exist_ok=True)
        jsonl.write_json(path, header)
        return cls(directory, header)

    @classmethod
    def read(cls, directory: Path) -> "RunFolder":
        """Open a run to look at it; ValueError if there is none."""
        path = directory / HEADER
        if not path.is_file():
            raise ValueError(f"{directory} holds no evaluation (no {HEADER}). Give the output folder of eval/run.py.")
        return cls(directory, json.loads(path.read_text(encoding="utf-8")))

    def row_path(self, name: str) -> Path:
        """The file of a row."""
        return self.directory / "rows" / f"{name}.jsonl"

    @staticmethod
    @contextmanager
    def held(directory: Path) -> Iterator[None]:
        """Keep others from writing into a run's folder meanwhile, until this process ends, however it ends.

        Raises ValueError if a process of another run is still there, such as one whose launcher was killed.
        """
        directory.parent.mkdir(parents=True, exist_ok=True)
        mine = directory.parent / f".{directory.name}.{rank()}.lock"
        there = directory.parent.glob(f".{glob.escape(directory.name)}.*.lock") if rank() == 0 else ()
        # each process of this run looks for its own predecessor, and the first one for those that had higher numbers
        others = [path for path in there if int(path.suffixes[-2][1:]) >= world_size()]
        held = []
        try:
            for path in [mine, *others]:
                held.append(FileLock(path))
                held[-1].acquire(blocking=False)
            for other in held[1:]:
                other.release()
            yield
        except Timeout:
            raise ValueError(
                f"Another process still writes into {directory}. Wait until it is done, or end it: it may have "
                "outlived a launcher that was killed."
            ) from None
        finally:
            for lock in held:
                lock.release()

    def row_file(self, name: str) -> LineFile:
        """The file of a row, as this process writes it."""
        return LineFile(self.row_path(name), None if world_size() == 1 else self._part(rank(), name))

    def file(self, name: str) -> LineFile:
        """A file beside the rows, one per process."""
        return LineFile(self.directory / f"{name}{'' if world_size() == 1 else f'.{rank()}'}.jsonl")

    def _part(self, number: int | str, name: str) -> Path:
        return self.directory / "parts" / str(number) / f"{name}.jsonl"

    def _parts(self, name: str) -> list[Path]:
        return sorted(path for path in self.directory.glob("parts/*/*.jsonl") if path.name == f"{name}.jsonl")

    def lines(self, name: str) -> list[dict]:
        """All lines of a row, those of processes that did not come to their end included; a key counts once."""
        found = [line for path in (self.row_path(name), *self._parts(name)) for line in jsonl.read(path)]
        return list({line["key"]: line for line in found[::-1]}.values())[::-1]

    def merge(self, name: str) -> None:
        """Put the parts of a row into its file. Nothing is lost or doubled wherever this stops."""
        parts = self._parts(name)
        if not parts:
            return
        self.row_path(name).parent.mkdir(parents=True, exist_ok=True)
        jsonl.write_lines(self.row_path(name), self.lines(name))
        for part in parts:
            part.unlink()

    def forget_failures(self, name: str) -> None:
        """Take failed answers out of a row, and what was concluded from them, so that they are asked again."""
        self.merge(name)
        lines = self.lines(name)
        if not any(line["type"] == "answer" and line["failed"] for line in lines):
            return
        over = ("budget", "finished")
        kept = [line for line in lines if line["type"] not in over and not line.get("failed")]
        jsonl.write_lines(self.row_path(name), kept)

    def sessions(self) -> list[dict]:
        """What each start took, of each of its processes."""
        return [line for path in sorted(self.directory.glob("sessions*.jsonl")) for line in jsonl.read(path)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The settings of all rows, in order."""
        return self.header.get("rows") or self.header["config"]["rows"]

    def names(self) -> list[str]:
        """The rows that were begun, in order."""
        return [name for row in self.rows if self.row_path(name := row["name"]).is_file() or self._parts(name)]


def _changes(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in {**before, **after}
            for line in _changes(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for number, (one, two) in pairs for line in _changes(one, two, f"{path}.{number}")]
    return [] if before == after else [f"{path}: {before!r} there, {after!r} now"]


def describe_machine(command: Sequence[str]) -> dict:
    """What runs this: time, command, code, packages, hardware."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(command),
        "version": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _commit() -> str | None:
    """The commit of the source tree, with a + if files differ from it; None outside a repository."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")
