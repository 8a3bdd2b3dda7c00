"""The folder of an evaluation, from which it can be resumed at any moment.

`header.json` says what is evaluated and on what. `results/<entry>/<rank>.jsonl` holds what a process found out about an
entry: a line per fact, told apart by "type": "model" (how it was loaded), "calibration", "video" (tokens, captions),
"answer" (one question), "timing" (one video alone), "budget", "finished". "video" is a record's id, "file" its media
file. Each line has a "key", and the first line with a key counts. A process appends to its own file only; readers read
all files of a folder.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from langdc import jsonl
from langdc.distributed import rank, world_size
from langdc.evaluate.identity import describe_machine
from langdc.hashing import json_hash
from langdc.log import get_logger

logger = get_logger(__name__)

HEADER = "header.json"
CONCLUSIONS = ("budget", "finished")
"""Types of lines that follow from the answers."""
_NONE, _NUMBER = type(None), (int, float)
_LINES: dict[str, dict[str, Any]] = {
    "answer": {
        "video": str, "kind": str, "question": str, "expected": str, "answer": (str, _NONE), "reason": (str, _NONE),
        "correct": bool, "failed": bool, "score": (*_NUMBER, _NONE),
    },
    "video": {
        "video": str, "tokens": _NUMBER, "captions": (list, _NONE), "segment_tokens": list, "densities": list,
        "targets": list,
    },
    "timing": {"warm": bool, "seconds": dict}, "budget": {"match": str, "measure": str, "equal": bool},
    "verdict": {"right": bool, "score": range(6)}, "encoding": {"seconds": dict},
    "session": {"seconds": _NUMBER, "stages": dict},
}  # fmt: skip
"""What is read of a line, by its type, and of which types or values it may be."""


def _check(value: Any, wanted: Mapping[str, Any], where: object) -> None:
    """ValueError unless a value is an object with these items."""
    for name, kinds in wanted.items():
        given = value.get(name, ...) if isinstance(value, dict) else ...
        if not (given in kinds if isinstance(kinds, range) else isinstance(given, kinds)):
            found = f"{name} is {value[name]!r:.80}" if isinstance(value, dict) and name in value else f"lacks {name}"
            raise ValueError(f"{where} is damaged ({found}). Restore it, or evaluate again into another folder.")


class LineFile:
    """Lines with a "key" each, in the files of a folder; this process appends to `path` and knows the lines of all."""

    def __init__(self, path: Path, alone: bool = False) -> None:
        self.path, self._alone = path, alone
        self.reread()

    def reread(self) -> None:
        """Learn what other processes have written since."""
        files = [self.path] if self._alone else sorted(self.path.parent.glob("*.jsonl"))
        self.by_key: dict[str, dict] = {}
        for file, line in ((one, line) for one in files for line in jsonl.read(one)):
            _check(line, {"key": str}, file)
            _check(line, {"type": str}, f"{file}, {line['key']},")
            _check(line, _LINES.get(line["type"], {}), f"{file}, {line['key']},")
            self.by_key.setdefault(line["key"], line)

    @property
    def lines(self) -> list[dict]:
        """All lines, one per key."""
        return list(self.by_key.values())

    def __contains__(self, key: str) -> bool:
        return key in self.by_key

    def append(self, lines: Iterable[dict]) -> None:
        """Write the lines whose key is new, in one piece."""
        new = {line["key"]: line for line in lines if line["key"] not in self.by_key}
        jsonl.append(self.path, *new.values())
        self.by_key |= new


class EvalFolder:
    """The output folder of one evaluation; `header` is what its header.json says."""

    def __init__(self, directory: Path, header: dict) -> None:
        self.directory, self.header = directory, header

    @classmethod
    def start(
        cls,
        directory: Path,
        identity: dict,
        info: dict,
        command: Sequence[str],
        judging: Mapping[str, Any] | None = None,
        plugins: Mapping[str, str] | None = None,
    ) -> "EvalFolder":
        """Begin an evaluation or resume it. `identity`: config, weights, data, version; they must be those found there.

        `info` joins the header, and `judging`, whose newest value is kept. Another commit, or another source of a
        member from outside (`plugins`: hash by module), only warns. Raises ValueError that lists what differs.
        """
        path = directory / HEADER
        session = {**describe_machine(command), "plugins": dict(plugins or {})}
        if not path.is_file() and jsonl.names_in(directory):
            raise ValueError(f"{directory} holds files that are no evaluation. Choose another place with output=...")
        header = {**info, **identity, "identity_sha256": json_hash(identity), "sessions": []}
        if path.is_file():
            header = cls.read(directory).header
            changed = _changes({key: header.get(key) for key in identity}, json.loads(json.dumps(identity)))
            if changed:
                listed = "\n  ".join(changed[:12])
                raise ValueError(
                    f"{directory} holds an evaluation of something else:\n  {listed}\n"
                    "Choose another place with output=..., or delete that folder."
                )
            before, now = header["sessions"][-1], session
            if before["commit"] != now["commit"]:
                logger.warning("%s was made with commit %s; this is %s.", directory, before["commit"], now["commit"])
            known = before.get("plugins", {})
            for module in sorted({**known, **now["plugins"]}):
                if known.get(module) != now["plugins"].get(module):
                    logger.warning("%s: the source of %s has changed since the last start.", directory, module)
        header.update(judging or {})
        header["sessions"].append(session)
        jsonl.make_folder(directory)
        jsonl.write_json(path, header)
        return cls(directory, header)

    @classmethod
    def read(cls, directory: Path, whole: bool = False) -> "EvalFolder":
        """Open an evaluation; ValueError if there is none, one of version 0.1, or a damaged one.

        `whole`: whether its header must hold all that a report says.
        """
        path = directory / HEADER
        if not path.is_file():
            raise ValueError(f"{directory} holds no evaluation (no {HEADER}). Give the output folder of `langdc eval`.")
        header = jsonl.read_json(path)
        if isinstance(header, dict) and "entries" not in header:
            raise ValueError(f"{directory} was made by langdc 0.1, whose evaluations are not read. Evaluate again.")
        _check(header, {"entries": list, "sessions": list}, path)
        for entry in header["entries"]:
            _check(entry, {"name": str, **({"compressor": (dict, _NONE), "control": object} if whole else {})}, path)
        for session in header["sessions"] or [None]:
            _check(session, {"commit": (str, _NONE)}, path)
        if whole:
            _check(header, {"config": dict, "training": dict, "target_kinds": list}, path)
            _check(header["config"], {"reference": (str, _NONE), "task": dict}, path)
            _check(header["config"]["task"], {"name": str}, path)
        return cls(directory, header)

    @staticmethod
    @contextmanager
    def locked(directory: Path) -> Iterator[None]:
        """Lock a folder against other writers within the context; ValueError if another process writes there."""
        first, doing = directory / jsonl.LOCK, f"still writes into {directory}"
        own = first.with_name(f"{first.name}.{rank()}") if rank() else first  # which a training also locks
        with jsonl.locked(own, doing):
            # each process looks for its own predecessor, and the first one for those that had higher numbers
            for path in directory.glob(f"{jsonl.LOCK}.*") if rank() == 0 else ():
                if int(path.suffix[1:]) >= world_size():
                    with jsonl.locked(path, doing):
                        pass
            yield

    def file(self, name: str) -> LineFile:
        """Lines about the whole evaluation: this process's file in the folder of that name."""
        return LineFile(self.directory / name / f"{rank()}.jsonl")

    def entry_file(self, name: str) -> LineFile:
        """The lines of an entry, as this process writes them."""
        return LineFile(self.directory / "results" / name / f"{rank()}.jsonl")

    def _files(self, name: str) -> list[Path]:
        return sorted((self.directory / "results" / name).glob("*.jsonl"))

    def lines(self, name: str) -> list[dict]:
        """All lines of an entry, by whichever process; a key counts once."""
        return self.entry_file(name).lines

    def forget_failures(self, name: str) -> None:
        """Take failed answers out of an entry's files, and what follows from them, so that they are asked again."""
        if not any(line["type"] == "answer" and line["failed"] for line in self.lines(name)):
            return
        for path in self._files(name):  # the first process's file first: it says that the entry is finished
            kept = [x for x in jsonl.read(path) if x["type"] not in CONCLUSIONS and not x.get("failed")]
            jsonl.write_lines(path, kept)

    @property
    def failures(self) -> int:
        """How many answers of all entries failed."""
        return sum(one["failed"] for name in self.names() for one in self.lines(name) if one["type"] == "answer")

    def write_submissions(self, form: Callable[[list[dict]], Any]) -> Path | None:
        """Write the replies of finished entries to hand in, where some question has no answer; the folder, or None.

        `<entry>.json` is what `form` makes of rows with id, question, reply and answer (what was read of the reply),
        `<entry>.csv` the rows as they are. The id is the question's label "id", else the record's with its number.
        """
        target = self.directory / "submission"
        for name in self.names():
            found = self.entry_file(name)
            answers = [line for line in found.lines if line["type"] == "answer"]
            if "finished" not in found or all(line["expected"].strip() for line in answers):
                continue
            names = {"question": "question", "reply": "answer", "answer": "parsed"}
            ids = [(line.get("labels") or {}).get("id") or line["key"] for line in answers]
            said = [{column: line[key] for column, key in names.items()} for line in answers]
            rows = [{"id": one, **row} for one, row in zip(ids, said, strict=True)]
            target.mkdir(exist_ok=True)
            jsonl.write_json(target / f"{name}.json", form(rows))
            jsonl.write_text(target / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
        return target if target.is_dir() else None

    def loop_cost(self) -> str:
        """How often videos were decoded in all sessions, and the share of time outside the stages, in words."""
        sessions = self.file("sessions").lines
        if not sessions:
            return ""
        seconds, videos, decoded, read = (
            sum(line.get(name, 0) for line in sessions) for name in ("seconds", "videos", "decoded", "read")
        )
        staged = sum(spent for line in sessions for spent in line["stages"].values())
        stored = f" and read {read} times from stored encoder outputs" if read else ""
        return (
            f"{videos} videos were decoded and encoded {decoded} times{stored} in all; the loop spent "
            f"{100 * (1 - staged / seconds):.1f} % of {seconds:.1f} s outside decoding, preprocessing, encoding, "
            "compressing, prefill and generation."
        )

    def names(self) -> list[str]:
        """The entries that were begun, in order."""
        return [entry["name"] for entry in self.header["entries"] if self._files(entry["name"])]


def _changes(before: Any, after: Any, path: str = "") -> list[str]:
    """One line per difference between two trees of settings: where, what stood there, what it is now.

    Items of lists that have a name, such as entries, are compared by it.
    """
    if (then := _by_name(before)) and (now := _by_name(after)):
        lines = [f"{path}: {name!r} is gone" for name in then if name not in now]
        lines += [f"{path}: {name!r} is new" for name in now if name not in then]
        lines += [line for name in then if name in now for line in _changes(then[name], now[name], f"{path}.{name}")]
        return lines or [f"{path}: in another order"] * (before != after)
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = [(str(key), before.get(key), after.get(key)) for key in {**before, **after}]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(index), *both) for index, both in enumerate(zip(before, after, strict=True))]
    else:
        return [] if before == after else [f"{path}: {before!r:.200} there, {after!r:.200} now"]
    return [line for key, one, two in pairs for line in _changes(one, two, f"{path}.{key}".lstrip("."))]


def _by_name(tree: Any) -> dict[str, Any]:
    """The items of a list by their names; {} if it is none, or one has no name."""
    named = isinstance(tree, list) and all(isinstance(item, dict) and "name" in item for item in tree)
    return {item["name"]: item for item in tree} if named else {}
