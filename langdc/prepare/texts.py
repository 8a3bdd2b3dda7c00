"""What the columns of a row say: turns of a conversation, options and the letter of the answer, bounds of a clip."""

import ast
import json
import re
from collections import Counter
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from langdc.data.records import LETTERS

# Names of columns; the first that holds something counts.
_TALKS = ("messages", "conversations")
_ASKED = ("question", "problem", "prompt", "query", "instruction")
_CAPTIONS = ("caption", "text")
_ANSWERS = ("answer", "response", "output", "solution")
_OPTIONS = ("options", "choices", "candidates")
_OPTION_COLUMNS: dict[str, int | None] = {
    **dict.fromkeys(("a{0}", "option_{0}", "option{0}"), 0),
    **dict.fromkeys(("option_{1}", "option{1}"), 1),
    **dict.fromkeys(("option_{2}", "option_{3}", "{3}"), None),
}
"""And from which number they count; None for letters."""
MEDIA = {
    "video": ("video", "videos", "video_path", "video_file", "clip", "clip_path"),
    "image": ("image", "images", "image_path", "image_file"),
}
FILES = ("file_name", "filename", "file", "path", "media", "video_id")
_BOUNDS = (("start", "end"), ("start_time", "end_time"), ("video_start", "video_end"))
BOUNDS = frozenset(name for names in _BOUNDS for name in names)
IDS = ("id", "question_id", "sample_id", "uid", "key", "__key__")
KINDS = ("kind", "task", "category", "task_type", "question_type")
_TEXTS = (*_TALKS, *_ASKED, *_CAPTIONS)
_NAMES = [*_TEXTS, *_ANSWERS, *_OPTIONS, *FILES, *IDS, *KINDS, "timestamp", "context", "subtitles", "input", "system"]
_NAMES += [name for names in (*MEDIA.values(), *_BOUNDS) for name in names]
_NAMES += [pattern.format(n, n + 1, LETTERS[n].lower(), LETTERS[n]) for n in range(26) for pattern in _OPTION_COLUMNS]
_KNOWN = {name.casefold(): name for name in _NAMES} | {name: name for name in _NAMES}
_TIME = re.compile(r"\d+(:[0-5]?\d){1,2}(\.\d*)?|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.I | re.A)
_LETTERED = re.compile(r"\s*\(?([A-Za-z])([.):])(?!(?:[A-Za-z]\.)+$)(.*)", re.DOTALL)  # not "a.m."
_CLOSE = 0.75  # likeness from which on another name may be meant
_ROLES = {role: role for role in ("user", "assistant", "system")}
_ROLES |= {"human": "user", "gpt": "assistant", "model": "assistant"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS = ("image", "image_url", "input_image", "video", "video_url", "input_video")

Turns = list[tuple[str, str]]


@dataclass
class Parts:
    """What messages hold beside text: the media that parts name, the bounds of each part, keys that nothing reads."""

    media: list[tuple[str, Any, str]] = field(default_factory=list)
    """Of each "video" or "image", a path or contents, the field."""
    bounds: list[dict[str, float]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def columns(row: Any) -> dict[str, Any]:
    """A row; names that differ from a known one by case or blanks alone are written like it, where only one does."""
    if not isinstance(row, dict):
        raise ValueError(f"it is {_shown(row)}, where an object of names and values must be")
    known: dict[str, Any] = {name: _KNOWN.get(name, _KNOWN.get(name.strip().casefold(), name)) for name in row}
    often = Counter(known.values())
    return {new if often[new] == 1 else name: row[name] for name, new in known.items()}


def nearest(name: str) -> str:
    """The known name that is most like that of a column, as ", perhaps question"; "" if none is."""
    close = get_close_matches(name.strip().casefold(), _KNOWN, n=1, cutoff=_CLOSE) if name not in _KNOWN else []
    return f", perhaps {_KNOWN[close[0]]}" if close else ""


def no_text(row: dict[str, Any]) -> str:
    """Why a row without text has none."""
    empty = [f"`{name}` is {'null' if row[name] is None else 'blank'}" for name in _TEXTS if name in row]
    return ", ".join(empty) or "none of its columns is known to hold text (docs/data.md)"


def clip_bounds(row: dict) -> dict[str, float]:
    """Start and end of a clip in seconds, as far as they are given; these are taken out of the row, or part."""
    for names in _BOUNDS:
        given = {key: pop(row, [name]) for key, name in zip(("start", "end"), names, strict=True)}
        if found := {key: _seconds(value, name) for key, (name, value) in given.items() if value is not None}:
            return found
    span = as_items(row.get("timestamp"))
    if len(span) == 2:
        del row["timestamp"]
        return {key: _seconds(value, "timestamp") for key, value in zip(("start", "end"), span, strict=True)}
    return {}


def _seconds(value: Any, where: str) -> float:
    """Of a number, or of text like "1:02.5"."""
    if not _TIME.fullmatch(str(value).strip()):
        raise ValueError(f"{where}: {value!r} is no time; give seconds from 0 on, or h:mm:ss")
    return sum(float(part) * 60**power for power, part in enumerate(reversed(str(value).split(":"))))


def read_text(row: dict, parts: Parts, every: Container[str]) -> tuple[str, Turns, list[str]]:
    """Shape, turns, and options where there are some, all taken out of the row; `parts` gets what else turns hold, and
    `every` names all columns, also blank ones.
    """
    if talk := next((name for name in _TALKS if row.get(name) is not None), None):
        llava = talk == "conversations" and {"video", "image"} & row.keys()
        turns = _turns(as_items(row.pop(talk)), talk, parts)
        system = optional(row, "system")
        shape = talk if talk == "messages" else f"{'LLaVA' if llava else 'ShareGPT'} {talk}"
        return shape, ([("system", system)] if system else []) + turns, []
    if any(row.get(name) is not None for name in _ASKED):
        name, value = pop(row, _ASKED)
        text = "\n".join(filter(None, (as_text(value, name), optional(row, "input") if name == "instruction" else "")))
        options, first = _options(row, every)
        answer = _answer(row, options, first)
        shape = "multiple choice" if options else "questions"
        return shape, [("user", text), *([("assistant", answer)] if answer else [])], options
    name, value = pop(row, _CAPTIONS)
    if name:
        return "captions", [("user", ""), ("assistant", as_text(value, name))], []
    return ("media without text", [], []) if row.get("context") is None else ("captions", [("user", "")], [])


def _turns(turns: list, talk: str, parts: Parts) -> Turns:
    said = []
    for number, turn in enumerate(turns):
        at = f"{talk}.{number}"
        if not isinstance(turn, dict):
            raise ValueError(f"{at}: {_shown(turn)}, where an object with role and content must be")
        speaker, content = ("from", "value") if turn.get("from") is not None else ("role", "content")
        role = as_text(turn.get(speaker), f"{at}.{speaker}")
        if role not in _ROLES:
            raise ValueError(f"{at}.{speaker}: {role!r}; allowed are {', '.join(_ROLES)}")
        said.append((_ROLES[role], _content(turn.get(content), f"{at}.{content}", parts)))
        parts.unused += [f"{talk}.{name}" for name in _filled(turn) if name not in (speaker, content)]
    return said


def _content(content: Any, at: str, parts: Parts) -> str:
    """Text, or parts in OpenAI's way, of which each video and image leaves a mark."""
    if not isinstance(content, list):
        return as_text(content, at)
    pieces, place = [], re.sub(r"\.\d+", "", at)
    for number, part in enumerate(content):
        kind, rest = (part.get("type"), _filled(part)) if isinstance(part, dict) else (None, {})
        inner: dict[str, Any] = {}
        if kind in _TEXT_PARTS:
            pieces.append(as_text(part.get("text"), f"{at}.{number}.text"))
            rest.pop("text", None)
        elif kind in _MEDIA_PARTS:
            medium = "video" if "video" in kind else "image"
            name, given = pop(rest, (*_MEDIA_PARTS, "path", "url"))
            if isinstance(given, dict) and "url" in given:
                inner = _filled(given)
                given = inner.pop("url", None)
            parts.bounds.append(clip_bounds(rest) or clip_bounds(inner))
            parts.media += [(medium, given, f"{at}.{number}.{kind}")] if given is not None else []
            parts.unused += [f"{place}.{name}.{key}" for key in inner]
            pieces.append(f"<{medium}>")
        else:
            raise ValueError(f"{at}.{number}.type: {kind!r}; allowed are {', '.join((*_TEXT_PARTS, *_MEDIA_PARTS))}")
        parts.unused += [f"{place}.{key}" for key in rest if key != "type"]
    return "".join(pieces)


def _options(row: dict, every: Container[str]) -> tuple[list[str], int | None]:
    """What there is to choose from, in order and without letters; from which number it counts, None if by letters."""
    name, value = pop(row, _OPTIONS)
    options, first = [as_text(item, f"{name}.{number}") for number, item in enumerate(as_items(value))], 0
    for pattern, start in _OPTION_COLUMNS.items() if value is None else ():
        names = [pattern.format(n, n + 1, LETTERS[n].lower(), LETTERS[n]) for n in range(26)]
        there = [name for name in names if row.get(name) is not None]
        if there and names[0] in every and names[1] in every:
            if there != names[: len(there)]:
                raise ValueError(f"{there[-1]}: an option before it is missing or blank")
            options, first = [as_text(row.pop(name), name) for name in there], start
    if len(options) == 1:
        raise ValueError(f"{name or 'options'}: one option; give a list of two or more")
    found = [each for each in map(_LETTERED.fullmatch, options) if each]
    letters, known = [each[1].upper() for each in found], [*LETTERS[: len(options)]]
    if options and len(found) == len(options):
        if sorted(letters) == known:
            ordered = letters == known
            options = [text.strip() for _, text in sorted(zip(letters, (each[3] for each in found), strict=True))]
            first = first if ordered else None
        elif all(each[2] == ")" or ("A" in letters and each[3][:1].isspace()) for each in found):  # not "J. Watt"
            raise ValueError(f"{name or 'options'}: their letters are {', '.join(letters)}; give {', '.join(known)}")
    if blank := [letter for letter, text in zip(LETTERS, options, strict=False) if not text.strip()]:
        raise ValueError(f"{name or 'options'}: option {blank[0]} is blank; write it, or take it out")
    return options, first


def _answer(row: dict, options: list[str], first: int | None) -> str:
    """The answer, "" if there is no such column; of options, counted from `first`, the letter of the one it names."""
    name, value = pop(row, _ANSWERS)
    value = str(value) if options and type(value) is int else value if name else ""
    text = re.sub(r"^\s*<answer>\s*(.*?)\s*</answer>\s*$", r"\1", as_text(value, name), flags=re.DOTALL)
    if not options or not name:
        return text
    if first is None and text.strip() in map(str, range(len(options) + 1)):
        raise ValueError(f"{name}: {text!r} is a number, and the options have letters; give the letter")
    letters = []
    for index, (letter, option) in enumerate(zip(LETTERS, options, strict=False), first or 0):
        ways = rf"\(?{letter}[.):]?|{index}|(\(?{letter}[.):]\s*)?{re.escape(option.strip())}"
        letters += [letter] if re.fullmatch(ways, text.strip(), re.IGNORECASE) else []
    if len(letters) != 1:
        why = f"may be {' or '.join(letters)}; give the letter" if letters else f"is none of the {len(options)} options"
        counting = f", which count from {first}" if text.strip().isdecimal() and not letters else ""
        raise ValueError(f"{name}: {text!r} {why}{counting}")
    return letters[0]


def pop(row: dict, names: Sequence[str]) -> tuple[str, Any]:
    """Take the first of these columns that holds something, else the first that is null: name and value."""
    there = [name for name in names if name in row]
    name = next((name for name in there if row[name] is not None), next(iter(there), ""))
    return name, row.pop(name, None)


def optional(row: dict, *names: str) -> str:
    """The text of the first of these columns that holds something, which is taken out; "" if none does."""
    name, value = pop(row, names)
    return "" if value is None else as_text(value, name)


def as_text(value: Any, where: str) -> str:
    """A value that must be text; ValueError names the field of another one."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {_shown(value)}, where text must be")
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value!r}" if isinstance(value, int | float) else f"a {type(value).__name__}"


def as_items(value: Any) -> list:
    """A list as it is, or written as text; else the one value, if any."""
    if isinstance(value, str) and value.startswith("["):
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return list(parse(value))
    return value if isinstance(value, list) else [] if value is None else [value]


def _filled(tree: dict) -> dict:
    """What holds something: tables of `datasets` have all keys of all parts in each."""
    return {name: value for name, value in tree.items() if value is not None and value not in ("", [], {})}
