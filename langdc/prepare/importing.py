"""`langdc data import SOURCE --out mine.jsonl`: a data set in an exchanged format as records.

SOURCE is a file, a folder of such files or of videos with .txt or .srt files beside them, or a set of `datasets`.
docs/data.md says what rows may hold. Those that cannot be used are named and left out, and the exit code is 1.
"""

import argparse
import ast
import base64
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.parse import unquote

from langdc.config import check
from langdc.data.records import LETTERS, MARKS, OUTSIDE, SHOWN_LETTERS, Record, leads_outside, listed, write_records
from langdc.jsonl import check_output, writing
from langdc.log import screen, track
from langdc.prepare.rows import read
from langdc.tools.options import add_outside
from langdc.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_image

# Names of columns; the first that holds something counts.
_TALKS = ("messages", "conversations")
_ASKED = ("question", "problem", "prompt", "query", "instruction")
_ANSWERS = ("answer", "response", "output", "solution")
_OPTIONS = ("options", "choices", "candidates")
_OPTION_COLUMNS = ("a{0}", "option_{0}", "option{0}", "option_{1}", "option{1}", "option_{2}", "option_{3}", "{3}")
_MEDIA = {
    "video": ("video", "videos", "video_path", "video_file", "clip", "clip_path"),
    "image": ("image", "images", "image_path", "image_file"),
}
_FILES = ("file_name", "filename", "file", "path", "media", "video_id")
_BOUNDS = (("start", "end"), ("start_time", "end_time"), ("video_start", "video_end"))
_IDS = ("id", "question_id", "sample_id", "uid", "key", "__key__")
_KINDS = ("kind", "task", "category", "task_type", "question_type")
_ROLES = {role: role for role in ("user", "assistant", "system")}
_ROLES |= {"human": "user", "gpt": "assistant", "model": "assistant"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS = ("image", "image_url", "input_image", "video", "video_url", "input_video")

_Turns = list[tuple[str, str]]
_Named = list[tuple[str, Any, str]]  # media as rows name them: "video" or "image", a path or contents, the field


class MissingFile(ValueError):
    """A row names a video or image that is not there."""


class Importer:
    """Makes records of rows, one by one, and counts shapes, media, unused columns and repeated ids.

    Paths in rows begin at `media`, stay in it unless `allow_outside`, and are written relative to `place`; media that
    are inside rows go into `unpacked` (None: nothing is written). `kind` is that of questions whose row names none.
    """

    def __init__(self, kind: str, media: Path, place: Path, unpacked: Path | None):
        self.kind, self.media, self.place, self.unpacked = kind, media, place.resolve(), unpacked
        self.shapes, self.shown, self.unused, self.ids = Counter(), Counter(), Counter(), Counter()
        self.dropped, self.repeated, self.allow_outside = 0, 0, False

    def record(self, columns: Any, default: str, request: str | None = None) -> Record:
        """The record of a row; `default` is its id if it has none, `request` is asked where the row asks nothing.

        ValueError says why a row cannot be used (as does one in its place), MissingFile that a file is not there.
        """
        if isinstance(columns, ValueError):
            raise columns
        if not isinstance(columns, dict):
            raise ValueError(f"it is {_shown(columns)}, where an object of names and values must be")
        row = {name: value for name, value in columns.items() if value not in ("", [], {})}
        inside, identity = _Named(), _pop(row, _IDS)[1]
        shape, said, options = _said(row, inside)
        said, media = _in_order(said, self._media(row, inside))
        tree = media[0] if len(media) == 1 else {"media": media} if media else {}
        first = next((number for number, (role, _) in enumerate(said) if role != "system"), 0)
        dropped = len(said) > first + 1 and said[first][0] == "assistant"  # as LLaVA's own training does
        said = said[:first] + said[first + dropped :]
        if not all(text.strip() for role, text in said if role == "assistant"):
            raise ValueError("a reply of the assistant is blank")
        if shape == "captions":
            if not media:
                raise ValueError("it has a caption, and names no video or image")
            request = request or f"Describe the {next(iter(media[0]))}."
        if [role for role, _ in said] in (["user"], ["user", "assistant"]):
            asked = said[0][1]
            if not MARKS.sub("", asked).strip():
                if not request:
                    raise ValueError("nothing is asked; --request says what to ask")
                asked = f"{asked.strip()}\n{request}".strip()
            kind, context = _pop(row, _KINDS)[1], _optional(row, "context", "subtitles")
            question = {"kind": self.kind if kind is None else str(kind), "question": asked, "options": options}
            tree["questions"] = [{**question, "context": context, "answer": said[1][1] if said[1:] else ""}]
            tree["segments"] = [{"caption": said[1][1]}] if shape == "captions" and "image" in tree and said[1:] else []
        elif said:
            tree["messages"] = [{"role": role, "content": text} for role, text in said]
        unused = [name for name, value in row.items() if value is not None]
        if not said and (unused or not media):
            named = ", ".join(f"{name} (null)" if value is None else name for name, value in columns.items())
            raise ValueError(f"none of its columns ({named}) is known to hold text (docs/data.md), or it is blank")
        record = check(Record, {"id": default if identity is None else str(identity), **tree}, "its record")
        self.shapes[shape] += 1
        self.shown["with video" if "video" in str(media) else "with images" if media else "of text alone"] += 1
        self.unused.update(unused)
        self.dropped += dropped
        return self._with_own_id(record)

    def _with_own_id(self, record: Record) -> Record:
        own = record.id
        self.repeated += own in self.ids
        while own in self.ids:
            self.ids[record.id] += 1
            own = f"{record.id}#{self.ids[record.id]}"
        self.ids[own] = 1
        return record.model_copy(update={"id": own})

    def _media(self, row: dict, inside: _Named) -> list[dict[str, Any]]:
        """The videos and images in messages, or else in columns: path by kind, and the bounds of a clip."""
        columns = [(kind, *_pop(row, names)) for kind, names in _MEDIA.items()]
        outside = [(kind, item, name) for kind, name, value in columns for item in _items(value)]
        if not inside and not outside:
            name, value = _pop(row, _FILES)
            paths = [(item, str(item.get("path") if isinstance(item, dict) else item)) for item in _items(value)]
            outside = [("image" if is_image(path) else "video", item, name) for item, path in paths]
        if inside and outside:
            raise ValueError(f"{inside[0][2]} names media, and so does {outside[0][2]}; leave one of them out")
        media: list[dict] = [{kind: self._path(kind, value, where)} for kind, value, where in inside or outside]
        if bounds := _bounds(row):
            if [list(medium) for medium in media] != [["video"]]:
                raise ValueError(f"{', '.join(bounds)}: of which video? The row names {_marks(media) or 'none'}")
            media[0] |= bounds
        return media

    def _path(self, kind: str, value: Any, where: str) -> str:
        """Of a medium, relative to `place`; one that is given as bytes is unpacked."""
        name, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, None)
        if isinstance(value, bytes):
            name, content = "", value
        elif isinstance(value, str) and value.startswith("data:"):
            head, _, data = value.partition(",")
            try:
                name, content = "x." + re.sub(r"^[^/]*/|;.*", "", head), base64.b64decode(data, validate=True)
            except ValueError:
                raise ValueError(f"{where}: its data: address is not whole base64") from None
        if content is not None:
            return self._unpack(kind, name if isinstance(name, str) else "", content, where)
        given = _text(name, where)
        name = unquote(given[7:]) if given.startswith("file://") else given.replace("\\", "/")
        if "://" in name:
            raise ValueError(f"{where}: {name} is not on this machine; fetch it and give its path")
        suffixes = VIDEO_SUFFIXES if kind == "video" and not name.lower().endswith(VIDEO_SUFFIXES) else ()
        for file in (self.media / f"{name}{suffix}" for suffix in ("", *suffixes)):
            if os.path.isfile(file):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
                if not self.allow_outside and leads_outside(file, self.media):
                    raise ValueError(f"{where}: {name} {OUTSIDE}")
                return Path(os.path.relpath(file.resolve(), self.place)).as_posix()
        raise MissingFile(f"{where}: there is no file {self.media / name}")

    def _unpack(self, kind: str, name: str, content: bytes, where: str) -> str:
        """Write a medium under a name made of its content; its suffix says whether it is a video or an image."""
        if self.unpacked is None:
            return "not unpacked"
        if not isinstance(content, bytes) or not content:
            raise ValueError(f"{where}: the file is empty, or not given as bytes")
        suffix = Path(name).suffix.lower()
        if suffix not in (IMAGE_SUFFIXES if kind == "image" else VIDEO_SUFFIXES):
            suffix = ".jpg" if kind == "image" else ".mp4"
        file = self.unpacked / f"{sha256(content).hexdigest()[:20]}{suffix}"
        if not file.is_file() or file.stat().st_size != len(content):
            file.parent.mkdir(parents=True, exist_ok=True)
            with writing(file, sync=False) as partial:
                partial.write_bytes(content)
        return Path(os.path.relpath(file.resolve(), self.place)).as_posix()


def _marks(media: list[dict]) -> str:
    return " ".join("<video>" if "video" in medium else "<image>" for medium in media)


def _in_order(said: _Turns, media: list[dict]) -> tuple[_Turns, list[dict]]:
    """Turns with a mark of its own kind for each medium, and the media in the order of their marks."""
    if other := [role for role, text in said if role != "user" and MARKS.search(text)]:
        raise ValueError(f"a turn of the {other[0]} shows a medium; only the user shows some")
    marks, kinds = MARKS.findall(" ".join(text for _, text in said)), _marks(media).split()
    mixed = len(set(kinds)) > 1
    if marks and (len(marks) != len(kinds) or (mixed and sorted(marks) != sorted(kinds))):
        raise ValueError(f"the text has the marks {' '.join(marks)}, and the row names {' '.join(kinds) or 'no media'}")
    if marks and mixed:
        queues = {mark: iter([medium for medium in media if mark[1:-1] in medium]) for mark in set(marks)}
        media = [next(queues[mark]) for mark in marks]
    own = iter(_marks(media).split())
    return [(role, MARKS.sub(lambda _: next(own), text)) for role, text in said], media


def _bounds(row: dict) -> dict[str, float]:
    """Start and end of a clip in seconds, as far as they are given."""
    for names in _BOUNDS:
        given = {key: _pop(row, [name]) for key, name in zip(("start", "end"), names, strict=True)}
        if found := {key: _seconds(value, name) for key, (name, value) in given.items() if value is not None}:
            return found
    span = _items(row.get("timestamp"))
    if len(span) == 2:
        del row["timestamp"]
        return {key: _seconds(value, "timestamp") for key, value in zip(("start", "end"), span, strict=True)}
    return {}


def _seconds(value: Any, where: str) -> float:
    """Of a number, or of text like "1:02.5"."""
    try:
        return sum(float(part) * 60**power for power, part in enumerate(reversed(str(value).split(":"))))
    except ValueError:
        raise ValueError(f"{where}: {value!r} is no time; give seconds, or h:mm:ss") from None


# ---- text


def _said(row: dict, inside: _Named) -> tuple[str, _Turns, list[str]]:
    """Shape, turns, and options where there are some; media in the turns are added to `inside`."""
    if talk := next((name for name in _TALKS if row.get(name) is not None), None):
        llava = talk == "conversations" and {"video", "image"} & row.keys()
        turns = _turns(_items(row.pop(talk)), talk, inside)
        system = _optional(row, "system")
        shape = talk if talk == "messages" else f"{'LLaVA' if llava else 'ShareGPT'} {talk}"
        return shape, ([("system", system)] if system else []) + turns, []
    if any(row.get(name) is not None for name in _ASKED):
        name, value = _pop(row, _ASKED)
        text = "\n".join(filter(None, (_text(value, name), _optional(row, "input") if name == "instruction" else "")))
        options = _options(row)
        answer = _answer(row, options)
        shape = "multiple choice" if options else "questions"
        return shape, [("user", text), *([("assistant", answer)] if answer else [])], options
    name, value = _pop(row, ("caption", "text"))
    if name:
        return "captions", [("user", ""), ("assistant", _text(value, name))], []
    return ("media without text", [], []) if row.get("context") is None else ("captions", [("user", "")], [])


def _turns(turns: list, talk: str, inside: _Named) -> _Turns:
    said = []
    for number, turn in enumerate(turns):
        at = f"{talk}.{number}"
        if not isinstance(turn, dict):
            raise ValueError(f"{at}: {_shown(turn)}, where an object with role and content must be")
        speaker, content = ("from", "value") if turn.get("from") is not None else ("role", "content")
        role = _text(turn.get(speaker), f"{at}.{speaker}")
        if role not in _ROLES:
            raise ValueError(f"{at}.{speaker}: {role!r}; allowed are {', '.join(_ROLES)}")
        said.append((_ROLES[role], _content(turn.get(content), f"{at}.{content}", inside)))
    return said


def _content(content: Any, at: str, inside: _Named) -> str:
    """Text, or parts in OpenAI's way, of which each video and image leaves a mark."""
    if not isinstance(content, list):
        return _text(content, at)
    pieces = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXT_PARTS:
            pieces.append(_text(part.get("text"), f"{at}.{number}.text"))
        elif kind in _MEDIA_PARTS:
            medium = "video" if "video" in kind else "image"
            given = next((part[name] for name in (*_MEDIA_PARTS, "path", "url") if part.get(name) is not None), None)
            given = given["url"] if isinstance(given, dict) and "url" in given else given
            inside += [(medium, given, f"{at}.{number}.{kind}")] if given is not None else []
            pieces.append(f"<{medium}>")
        else:
            raise ValueError(f"{at}.{number}.type: {kind!r}; allowed are {', '.join((*_TEXT_PARTS, *_MEDIA_PARTS))}")
    return "".join(pieces)


def _options(row: dict) -> list[str]:
    """What there is to choose from, in one column or in several, without letters."""
    name, value = _pop(row, _OPTIONS)
    options = [_text(item, f"{name}.{number}") for number, item in enumerate(_items(value))]
    for pattern in _OPTION_COLUMNS if value is None else ():
        names = [pattern.format(n, n + 1, LETTERS[n].lower(), LETTERS[n]) for n in range(26)]
        there = [name for name in names if row.get(name) is not None]
        if there[1:] and there[0] == names[0]:
            if there != names[: len(there)]:
                raise ValueError(f"{there[-1]}: an option before it is missing")
            options = [_text(row.pop(name), name) for name in there]
    if len(options) == 1:
        raise ValueError(f"{name}: one option; give a list of two or more")
    lettered = zip(LETTERS, options, strict=False)
    found = [re.fullmatch(rf"\s*\(?{letter}[.):]\s*(.+)", text, re.DOTALL) for letter, text in lettered]
    return [each[1].strip() for each in found if each] if all(found) else options


def _answer(row: dict, options: list[str]) -> str:
    """The answer, "" if there is no such column; of options the letter of the one that it names."""
    name, value = _pop(row, _ANSWERS)
    value = str(value) if options and type(value) is int else value if name else ""
    text = re.sub(r"^\s*<answer>\s*(.*?)\s*</answer>\s*$", r"\1", _text(value, name), flags=re.DOTALL)
    if not options or not name:
        return text
    letters = []
    for index, (letter, option) in enumerate(zip(LETTERS, options, strict=False)):
        ways = rf"\(?{letter}[.):]?|{index}|(\(?{letter}[.):]\s*)?{re.escape(option.strip())}"
        letters += [letter] if re.fullmatch(ways, text.strip(), re.IGNORECASE) else []
    if len(letters) != 1:
        why = f"may be {' or '.join(letters)}; give the letter" if letters else f"is none of the {len(options)} options"
        raise ValueError(f"{name}: {text!r} {why}")
    return letters[0]


def _pop(row: dict, names: Sequence[str]) -> tuple[str, Any]:
    """Take the first of these columns that holds something, else the first that is null: name and value."""
    there = [name for name in names if name in row]
    name = next((name for name in there if row[name] is not None), next(iter(there), ""))
    return name, row.pop(name, None)


def _optional(row: dict, *names: str) -> str:
    name, value = _pop(row, names)
    return "" if value is None else _text(value, name)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {_shown(value)}, where text must be")
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value!r}" if isinstance(value, int | float) else f"a {type(value).__name__}"


def _items(value: Any) -> list:
    """A list as it is, or written as text; else the one value, if any."""
    if isinstance(value, str) and value.startswith("["):
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return list(parse(value))
    return value if isinstance(value, list) else [] if value is None else [value]


# ---- the command


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every row became a record, 1 when some could not."""
    parser = argparse.ArgumentParser(prog="langdc data import", description=__doc__)
    parser.add_argument("source", help="a file, a folder, or owner/name on the Hugging Face hub")
    parser.add_argument("--out", type=Path, required=True, help="the record file to write")
    parser.add_argument("--media", type=Path, help="where paths in rows begin (default: the folder of SOURCE)")
    parser.add_argument("--split", help="which part of a set of `datasets`")
    parser.add_argument("--name", help="kind of questions whose row names none (default: the name of SOURCE)")
    parser.add_argument("--request", help='what is asked where a row asks nothing (captions: "Describe the video.")')
    add_outside(parser)
    options, console = parser.parse_args(argv), screen()
    source, out = Path(options.source), options.out
    if source.resolve() == out.resolve():
        raise ValueError(f"--out {out} is the source. Name another file.")
    check_output(out)
    (what, rows), name = read(options.source, options.split), source.resolve().stem
    media = options.media or (source if source.is_dir() else source.parent if source.exists() else Path())
    importer = Importer(options.name or name, media, out.parent, out.parent / f"{out.stem}_media")
    importer.allow_outside, missing, unusable = options.allow_outside, list[str](), list[str]()

    def records() -> Iterator[Record]:
        number = -1
        for number, (where, row) in enumerate(track(rows, None, f"Rows of {name}")):
            try:
                yield importer.record(row, f"{name}/{number}", options.request)
            except ValueError as error:
                reason = shorten(f"{where}: {error}", SHOWN_LETTERS, placeholder=" ...")
                (missing if isinstance(error, MissingFile) else unusable).append(reason)
        os.sync()  # what was unpacked
        counted = [f"{shape} ({count:,})" for shape, count in importer.shapes.items()]
        shapes = ", ".join(counted if counted[1:] else importer.shapes) or "nothing that is known"
        console.print(f"{source.name or name}{what}: {shapes}, {number + 1:,} rows")
        if importer.unused:
            console.print("Not used:", ", ".join(f"{column} ({n:,})" for column, n in sorted(importer.unused.items())))
        if importer.dropped:
            console.print(f"{importer.dropped:,} conversations begin with the assistant; this turn is left out.")
        if importer.repeated:
            console.print(f"{importer.repeated:,} ids were there already and end in #2, #3 and so on.")
        for why, lines in (("name a file that is missing", missing), ("cannot be used", unusable)):
            if lines:
                console.print(listed(f"{len(lines):,} rows {why} and are left out", lines))
        if not importer.shapes:
            raise ValueError(f"No row of {source} can be used, so nothing is written.")

    write_records(out, records())
    counts = ", ".join(f"{count:,} {kind}" for kind, count in importer.shown.items())
    console.print(f"Written: {out}, {importer.shapes.total():,} records ({counts}).")
    return int(bool(missing or unusable))
