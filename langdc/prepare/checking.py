"""`langdc data check`: find what is wrong with a data set before it is trained on.

Every media file is looked into (first, middle and last frame of each clip) by child processes with a time limit. Writes
into a folder beside the data: report.html, faults.jsonl and quarantine.jsonl, the records that training leaves out with
--quarantine. After an interruption the same command continues.
"""

import argparse
import codecs
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from langdc import __version__, jsonl
from langdc.config import RunConfig, check, load
from langdc.data.records import LETTERS, OUTSIDE, SHOWN_LETTERS, Medium, Record, leads_outside, listed, read_records
from langdc.hashing import file_hash, json_hash
from langdc.log import screen, track
from langdc.prepare.probing import Job, probed
from langdc.text import counted, render
from langdc.tools.options import add_outside
from langdc.train.quarantine import FILE, FOLDER, folder_of, listed_files

_SHOWN = 5
"""Faults of each kind on the terminal; the page lists the first `_LISTED` of all."""
_LISTED = 2000
_TABLES, _PACKED = (".csv", ".tsv", ".parquet", ".tar", ".tgz"), (b"PAR1", b"PK\3\4")
_NAMED_BELOW = (b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff", b"[")  # beginnings of files that `_read` says more of
_CONTROL, _LONG = re.compile(r"<\|\w+\|>"), 20_000  # characters of a text that are hardly meant
_WINDOWS = re.compile(r"[A-Za-z]:|.*\\")
_KINDS = {
    "^not UTF-8": "encoding",
    "the marks|shows a medium": "marks",
    "the answer (is blank|'.*' is none)": "answer",
    "which is called like": "mislabelled",
    "one option is no choice": "options",
    "^the id .* is already": "duplicate id",
}
_ADVICE = {
    "windows path": "has Windows separators; write / and a path relative to this file's folder",
    "other machine": "is an absolute path of another machine; write it relative to this file's folder",
    "outside": "leads outside the folder of this file, and nothing is there",
    "missing": "there is no such file",
}


@dataclass(frozen=True)
class _Fault:
    """What is wrong with a line of a record file; one that is `fatal` keeps the record out of training."""

    file: Path
    line: int
    id: str | None
    kind: str
    reason: str
    fatal: bool = True


@dataclass(frozen=True)
class _Entry:
    """A record, where it stands, and those of its media that are there."""

    file: Path
    line: int
    record: Record
    media: list[tuple[Medium, Path]] = field(default_factory=list)

    def fault(self, kind: str, reason: str, fatal: bool = True) -> _Fault:
        return _Fault(self.file, self.line, self.record.id, kind, reason, fatal)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the data and write the report; 0 without fatal faults, 1 with."""
    parser = argparse.ArgumentParser(prog="langdc data check", description=__doc__)
    add, seconds = parser.add_argument, "limit for one file (default: 60)"
    add("data", nargs="+", type=Path, metavar="DATA.jsonl", help="record files")
    add("--eval", nargs="+", type=Path, default=[], metavar="FILE", help="evaluations whose media must not be in DATA")
    add("--config", metavar="TRAIN", help="a training config: also check its prompts and labels")
    add("--out", type=Path, help=f"folder for what is found (default: DATA{FOLDER} beside the data)")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="child processes (default: all cores)")
    add("--timeout", type=float, default=60.0, metavar="SECONDS", help=seconds)
    add_outside(parser)
    options = parser.parse_args(argv)
    if options.jobs < 1 or options.timeout <= 0:
        raise ValueError(f"--jobs {options.jobs} --timeout {options.timeout}: give at least 1, and over 0 seconds.")
    config = load(RunConfig, options.config) if options.config else None
    folder = options.out or folder_of(options.data[0])
    beside = [] if options.out else [folder_of(file) for file in options.data]
    for place in (folder, *beside):
        jsonl.check_output(place / FILE)
    for file in options.data:
        _check_kind(file)
    for place in (folder, *beside):
        for file in sorted(listed_files(place / FILE) - {file.resolve() for file in options.data}):
            own = folder_of(file)  # where it has a list, too, if files were checked together
            if file.is_file() and (options.out or own == place.resolve() or not (own / FILE).is_file()):
                raise ValueError(f"{place} holds the list of {file}. Give another folder for this one: --out DIR.")
    with jsonl.making_folder(folder), jsonl.locked(folder / jsonl.LOCK, f"writes into {folder}"):
        return _check(options, config, folder, beside)


def _check(options: argparse.Namespace, config: RunConfig | None, folder: Path, beside: list[Path]) -> int:
    faults: list[_Fault] = []
    out = screen()
    out.print(f"Reading {', '.join(map(str, options.data))} ...")
    entries = [entry for file in dict.fromkeys(options.data) for entry in _read(file, faults)]
    for entry in entries:
        faults += _of_text(entry, options.allow_outside)
    for file in dict.fromkeys(entry.file for entry in entries):
        own = [entry for entry in entries if entry.file == file]
        silent = [
            e for e in own if e.record.shown and not (e.record.questions or e.record.messages or e.record.segments)
        ]
        if silent:
            said = f"{len(silent)} of {counted(len(own), 'record')} ask and describe nothing; this is the first"
            faults.append(silent[0].fault("no question", said, False))
    held: dict[_Key, Path] = {}
    for file in options.eval:
        shown = [medium for record in read_records(file) for medium in record.shown]
        places = ((_place(file.parent, medium, options.allow_outside)[0], medium.fps) for medium in shown)
        held |= {(path, fps): file for path, fps in places if path is not None}
    found = _probe(entries, held, folder, options)
    faults += [*_of_media(entries, found), *_of_copies(entries, held, found)]
    if config is not None:
        out.print(f"Loading the tokenizer and sizes of {options.config} ...")
        faults += _of_prompts(entries, config, found)
        learned = {(fault.file, fault.line) for fault in faults if fault.fatal and fault.kind == "answer"}
        faults = [f for f in faults if f.fatal or f.kind != "answer" or (f.file, f.line) not in learned]
    order = list(options.data)
    faults.sort(key=lambda fault: (order.index(fault.file), fault.line, not fault.fatal))
    return _report(faults, entries, folder, beside)


# ---- what the lines say


def _check_kind(file: Path) -> None:
    """ValueError for what is no file, or a table or the like, of which no line is a record."""
    if not file.is_file():
        how = f"`langdc data import {file} --out {file}.jsonl` or `langdc data caption` makes records of videos in it"
        raise ValueError(f"{file} is a folder: {how}." if file.is_dir() else f"There is no record file {file}.")
    with file.open("rb") as opened:
        begin = opened.read(1 << 20).removeprefix(codecs.BOM_UTF8).lstrip()
    objects = begin[:2] != b"{\n" and not begin.startswith(_PACKED) and re.search(rb"^\s*\{", begin, re.MULTILINE)
    named = file.suffix.lower() in _TABLES and begin[:1] != b"{"
    if begin and (named or not objects) and not begin.startswith(_NAMED_BELOW):
        how = f"`langdc data import {file} --out {file.with_suffix('.jsonl')}` makes records of it, if it is CSV, TSV"
        raise ValueError(f"{file} is a table or the like, not JSON lines: {how}, JSON, Parquet or a tar.")


def _read(file: Path, faults: list[_Fault]) -> list[_Entry]:
    """The records that can be read; what is wrong with others goes to `faults`."""
    content = file.read_bytes()
    text = content.removeprefix(codecs.BOM_UTF8)
    for kind, is_so, reason in (
        ("gzip", content[:2] == b"\x1f\x8b", "the file is compressed; unpack it: gunzip"),
        ("encoding", content[:2] in (b"\xff\xfe", b"\xfe\xff"), "the file is UTF-16; write it as UTF-8"),
        ("array", text.lstrip()[:1] == b"[", "the file is a JSON array; write one record per line"),
        ("no records", not text.strip(), "the file holds no records"),
    ):
        if is_so:
            faults.append(_Fault(file, 1, None, kind, reason))
            return []
    if len(text) < len(content):
        faults.append(_Fault(file, 1, None, "BOM", "the file begins with a byte order mark, which is skipped", False))
    found: dict[str, _Entry] = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        name, kind = None, "JSON"
        try:
            value = jsonl.parse(line)
            kind, name = "record", value.get("id") if isinstance(value.get("id"), str) else None
            record = check(Record, value, "the record")
            if record.id in found:
                raise ValueError(f"the id {name!r} is already on line {found[record.id].line}; ids must differ")
            found[record.id] = _Entry(file, number, record)
        except ValueError as error:
            reason = " ".join(str(error).split())
            kind = next((named for start, named in _KINDS.items() if re.search(start, reason)), kind)
            faults.append(_Fault(file, number, name, kind, reason[:SHOWN_LETTERS]))
    return list(found.values())


def _of_text(entry: _Entry, allow_outside: bool) -> Iterable[_Fault]:
    """Faults of a record's questions and paths; fills in its media."""
    for question in entry.record.questions:
        texts = [option.strip().casefold() for option in question.options]
        if "" in texts:
            yield entry.fault("options", f"option {LETTERS[texts.index('')]} is blank")
        for number, text in enumerate(texts):
            if text and text in texts[:number]:
                pair = LETTERS[texts.index(text)], LETTERS[number]
                fatal = question.answer in pair
                yield entry.fault("options", f"options {pair[0]} and {pair[1]} have the same text {text!r}", fatal)
    without = [question.question for question in entry.record.questions if not question.answered]
    if without:
        more = f", nor have {len(without) - 1} more" * bool(without[1:])
        yield entry.fault("answer", f"the question {without[0][:60]!r} has no answer{more}", False)
    said = [text for question in entry.record.questions for text in (question.prompt(), question.answer)]
    said += [turn.content for turn in entry.record.messages] + [each.caption for each in entry.record.segments]
    if (longest := max(map(len, said), default=0)) > _LONG:
        yield entry.fault("long text", f"a text has {longest:,} characters; more tokens than a model holds fail", False)
    if control := dict.fromkeys(_CONTROL.findall("\n".join(said))):
        reason = f"{', '.join(control)[:SHOWN_LETTERS]} in a text: read as ordinary letters, not as a control token"
        yield entry.fault("control token", reason, False)
    for medium in entry.record.shown:
        path, kind, reason = _place(entry.file.parent, medium, allow_outside)
        if path is not None:
            entry.media.append((medium, path))
        if kind:
            yield entry.fault(kind, f"{medium.file}: {reason}", path is None)


def _place(root: Path, medium: Medium, allow_outside: bool) -> tuple[Path | None, str, str]:
    """Where a medium is, if it is there and may be read; the kind of fault of its path, and the reason."""
    name = str(medium.file)
    path = Path(os.path.abspath(root / name))  # noqa: PTH100  (links stay as they are)
    outside = leads_outside(path, root)
    try:
        there, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:
        return None, "missing", str(error)
    if there or (is_folder and medium.fps is not None):
        if outside and not allow_outside:
            return None, "outside", OUTSIDE
        if name.startswith("/"):
            return path, "absolute path", "other machines will not have it; write it relative to this file's folder"
        return path, "outside" if outside else "", "leads outside the folder of this file"
    if path.exists():
        reason = "is a folder; give fps" if is_folder else "is neither a file nor a folder"
        return None, "missing", reason
    kind = "windows path" if _WINDOWS.match(name) else "other machine" if name.startswith("/") else "missing"
    kind = "outside" if kind == "missing" and outside else kind
    return None, kind, _ADVICE[kind]


# ---- what the media hold


_Key = tuple[Path, float | None]


def _probe(
    entries: list[_Entry], held: dict[_Key, Path], folder: Path, options: argparse.Namespace
) -> dict[_Key, dict[str, Any]]:
    """By medium what was found (`probing.probed`), with the "clips" that were tried; kept in the folder as it comes."""
    clips: dict[_Key, dict[tuple, None]] = defaultdict(dict)
    for medium, path in [pair for entry in entries for pair in entry.media]:
        clips[path, medium.fps][medium.start, medium.end] = None
    sizes = {path.stat().st_size for path, _ in clips if path.is_file()}
    for path, fps in held:  # only those whose size occurs in the data can be in it
        if path.is_dir() or path.stat().st_size in sizes:
            clips.setdefault((path, fps), {})
    jobs: dict[str, Job] = {}
    for (path, fps), bounds in clips.items():
        status = path.stat()
        job = Job(str(path), fps, tuple(bounds), status.st_size, status.st_mtime_ns)
        jobs[json_hash([__version__, job])] = job
    kept = folder / "media.jsonl"
    known = {line["key"]: line for line in jsonl.read(kept) if line["key"] in jobs}
    names = {job: key for key, job in jobs.items() if key not in known}
    for job, result, lived in track(probed(names, options.jobs, options.timeout), len(names), "Checking media"):
        known[names[job]] = result
        if lived:  # a file that took too long is tried again
            jsonl.append(kept, {"key": names[job], **result})
    return {(Path(job.path), job.fps): {**known[key], "clips": job.clips} for key, job in jobs.items()}


def _of_media(entries: list[_Entry], found: dict[_Key, dict[str, Any]]) -> Iterable[_Fault]:
    for entry in entries:
        for medium, path in entry.media:
            result = found[path, medium.fps]
            for number, kind, reason, fatal in result["faults"]:
                if number is None or result["clips"][number] == (medium.start, medium.end):
                    yield entry.fault(kind, f"{medium.file}: {reason.removeprefix(f'{path}: ')}", fatal)


def _of_copies(entries: list[_Entry], held: dict[_Key, Path], found: dict[_Key, dict[str, Any]]) -> Iterable[_Fault]:
    """Files with the same content under two names, records that occur twice, and media of evaluations."""
    by_hash = Counter(result["hash"] for result in found.values())
    same = {}  # the hash of a sample is not enough where two files have it
    for key, name in ((key, result["hash"]) for key, result in found.items()):
        full = by_hash[name] > 1 and str(name).startswith("sampled:")
        same[key] = str(key) if name is None else file_hash(key[0]) if full else name
    leaked = {same[key]: file for key, file in held.items() if key in same}
    first: dict[str, tuple[Path, _Entry]] = {}
    twice: dict[str, _Entry] = {}
    reported: set[Path] = set()
    for entry in entries:
        hashes = [same[path, medium.fps] for medium, path in entry.media]
        for (medium, path), content in zip(entry.media, hashes, strict=True):
            if content in leaked:
                yield entry.fault("leak", f"{medium.file} is shown in the evaluation {leaked[content]}, too")
            other, of = first.setdefault(content, (path, entry))
            if path not in reported and not path.samefile(other):
                reported.add(path)
                reason = f"{medium.file} has the content of {other.name} ({of.file}, line {of.line})"
                yield entry.fault("duplicate file", reason, False)
        bounds = [(medium.start, medium.end, medium.fps) for medium in entry.record.shown]
        rest = entry.record.model_dump(include={"segments", "questions", "messages"})
        of = twice.setdefault(json_hash([hashes, bounds, rest]), entry)
        if of is not entry and len(entry.media) == len(entry.record.shown):
            yield entry.fault("duplicate record", f"says the same as {of.file}, line {of.line}", False)


def _of_prompts(entries: list[_Entry], config: RunConfig, found: dict[_Key, dict[str, Any]]) -> Iterable[_Fault]:
    from langdc.prepare.prompts import Prompts  # brings what trains

    prompts = Prompts(config)
    for entry in track(entries, len(entries), "Checking prompts"):
        shapes = [found[path, medium.fps]["shape"] for medium, path in entry.media]
        if len(shapes) == len(entry.record.shown) and all(shape and shape[0] for shape in shapes):
            paths, where = [path for _, path in entry.media], f"line {entry.line} (id {entry.record.id!r})"
            yield from (entry.fault(*fault) for fault in prompts.faults(entry.record, paths, shapes, where))
    if prompts.unused:
        screen().print(f"{prompts.unused} records are of no use to the objective {config.objective.name!r}.")
    if prompts.text_only:
        screen().print("The number of visual tokens is not known without weights; only text tokens are counted.")


# ---- the report


def _report(faults: list[_Fault], entries: list[_Entry], folder: Path, beside: list[Path]) -> int:
    """Print and write what was found; the list of what training leaves out also `beside` each data file."""
    out, kinds, reasons = screen(), defaultdict(list), defaultdict(list)
    for fault in faults:
        kinds[fault.kind + " (warning)" * (not fault.fatal)].append(fault)
        if fault.fatal:
            reasons[fault.file, fault.line, fault.id].append(f"{fault.kind}: {fault.reason}")
    for kind, found in kinds.items():
        names = ["" if fault.id is None else f", id {fault.id!r}" for fault in found]
        lines = [f"{f.file}, line {f.line}{name}: {f.reason}" for f, name in zip(found, names, strict=True)]
        out.print(listed(f"{kind}, {len(found)}", lines, _SHOWN))
    jsonl.write_lines(folder / "faults.jsonl", ({**asdict(fault), "file": str(fault.file)} for fault in faults))
    for place in dict.fromkeys([folder, *beside]):
        place.mkdir(exist_ok=True)
        kept_out = (
            {"file": os.path.relpath(file.resolve(), place.resolve()), "line": line, "id": name, "reasons": said}
            for (file, line, name), said in reasons.items()
        )
        jsonl.write_lines(place / FILE, kept_out)
    media = len({path for entry in entries for _, path in entry.media})
    counts = {kind: (len(found), len({(f.file, f.line) for f in found})) for kind, found in kinds.items()}
    figures = {"records": len(entries), "media": media, "fatal": len(reasons), "faults": len(faults)}
    files = Counter(entry.file for entry in entries)
    shown = {"figures": figures, "counts": counts, "faults": faults[:_LISTED], "files": files}
    jsonl.write_text(folder / "report.html", render("langdc", "prepare/checking.html", **shown))
    if missing := [q for entry in entries for q in entry.record.questions if not q.answered]:
        asked = counted(sum(len(entry.record.questions) for entry in entries), "question")
        out.print(f"{len(missing)} of {asked} {'have' if missing[1:] else 'has'} no answer.")
    found = f"{counted(len(entries), 'record')} can be read, with {media} media"
    out.print(f"{found}; {counted(len(faults), 'fault')}, warnings included.")
    out.print(f"{counted(len(reasons), 'record')} cannot be trained on. {folder / 'report.html'}")
    if reasons:
        out.print(f"Correct them, or train on the rest: langdc train CONFIG --quarantine {folder / FILE}")
    return int(bool(reasons))
