"""`langdc data import SOURCE --out mine.jsonl`: a data set in an exchanged format as records.

SOURCE is a file, a folder of such files or of videos with .txt or .srt files beside them, or a set of `datasets`.
docs/data.md says what rows may hold. Those that cannot be used are named and left out, and the exit code is 1.
"""

import argparse
import base64
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.parse import unquote

from langdc.config import check
from langdc.data.records import MARKS, OUTSIDE, SHOWN_LETTERS, Record, leads_outside, listed, write_records
from langdc.jsonl import check_output, writing
from langdc.log import screen, track
from langdc.prepare import texts
from langdc.prepare.rows import read
from langdc.prepare.texts import Parts, Turns, pop
from langdc.text import counted
from langdc.tools.options import add_outside
from langdc.video import VIDEO_SUFFIXES, is_image


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
        self.tried, self.asked, self.where, self.unanswered = Counter(), 0, "", list[str]()

    def record(self, given: Any, default: str, request: str | None = None) -> Record:
        """The record of a row; `default` is its id if it has none, `request` is asked where the row asks nothing.

        ValueError says why a row cannot be used (as does one in its place), MissingFile that a file is not there.
        """
        if isinstance(given, ValueError):
            raise given
        every = texts.columns(given)
        row = {name: v for name, v in every.items() if v not in ("", [], {}) or (v == "" and name in texts.BOUNDS)}
        parts, identity = Parts(), pop(row, texts.IDS)[1]
        shape, said, options = texts.read_text(row, parts, every)
        self.tried[shape] += bool(said)
        said, media = _in_order(said, self._media(row, parts))
        _bound(media, parts.bounds)
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
            kind, context = pop(row, texts.KINDS)[1], texts.optional(row, "context", "subtitles")
            question = {"kind": self.kind if kind is None else str(kind), "question": asked, "options": options}
            tree["questions"] = [{**question, "context": context, "answer": said[1][1] if said[1:] else ""}]
            tree["segments"] = [{"caption": said[1][1]}] if shape == "captions" and "image" in tree and said[1:] else []
        elif said:
            tree["messages"] = [{"role": role, "content": text} for role, text in said]
        unused = [name for name, value in row.items() if value is not None] + parts.unused
        if not said and (unused or not media):
            self.unused.update(unused)
            raise ValueError(texts.no_text(every))
        record = check(Record, {"id": default if identity is None else str(identity), **tree}, "its record")
        self.shapes[shape] += 1
        self.asked += len(record.questions)
        self.unanswered += [self.where for question in record.questions if not question.answered]
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

    def _media(self, row: dict, parts: Parts) -> list[dict[str, Any]]:
        """The videos and images in messages, or else in columns: path by kind, and the bounds of a clip."""
        found = [(kind, *pop(row, names)) for kind, names in texts.MEDIA.items()]
        outside = [(kind, item, name) for kind, name, value in found for item in texts.as_items(value)]
        if not parts.media and not outside:
            name, value = pop(row, texts.FILES)
            every = texts.as_items(value)
            paths = [str(item.get("path") if isinstance(item, dict) else item) for item in every]
            outside = [("image" if is_image(p) else "video", item, name) for item, p in zip(every, paths, strict=True)]
        if parts.media and outside:
            raise ValueError(f"{parts.media[0][2]} names media, and so does {outside[0][2]}; leave one of them out")
        named = parts.media or outside
        media: list[dict] = [{kind: self._path(kind, value, where)} for kind, value, where in named]
        inner = [(re.sub(r"\.\d+", "", where), value) for _, value, where in named if isinstance(value, dict)]
        parts.unused += [f"{where}.{key}" for where, value in inner for key in value if key not in ("path", "bytes")]
        if bounds := texts.clip_bounds(row):
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
        given = texts.as_text(name, where)
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
        suffix = Path(name).suffix.lower()
        if not (is_image(name) if kind == "image" else suffix in VIDEO_SUFFIXES):
            suffix = ".jpg" if kind == "image" else ".mp4"
        if self.unpacked is None:
            return f"not unpacked{suffix}"
        if not isinstance(content, bytes) or not content:
            raise ValueError(f"{where}: the file is empty, or not given as bytes")
        file = self.unpacked / f"{sha256(content).hexdigest()[:20]}{suffix}"
        if not file.is_file() or file.stat().st_size != len(content):
            file.parent.mkdir(parents=True, exist_ok=True)
            with writing(file, sync=False) as partial:
                partial.write_bytes(content)
        return Path(os.path.relpath(file.resolve(), self.place)).as_posix()


def _marks(media: list[dict]) -> str:
    return " ".join("<video>" if "video" in medium else "<image>" for medium in media)


def _in_order(said: Turns, media: list[dict]) -> tuple[Turns, list[dict]]:
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


def _bound(media: list[dict], bounds: list[dict[str, float]]) -> None:
    """Give media, in their order, the bounds that the parts of messages have for them."""
    if any(bounds) and len(bounds) != len(media):
        raise ValueError(f"parts of messages have bounds of {len(bounds)} media, and the row names {len(media)}")
    for medium, own in zip(media, bounds, strict=False):
        if own and medium.keys() & {"start", "end"}:
            raise ValueError("the row and a part of its messages both have bounds of the clip; leave one of them out")
        medium |= own


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
    console.print(f"Reading {options.source} ...")
    (what, rows), name = read(options.source, options.split), source.resolve().stem
    media = options.media or (source if source.is_dir() else source.parent if source.exists() else Path())
    importer = Importer(options.name or name, media, out.parent, out.parent / f"{out.stem}_media")
    importer.allow_outside = options.allow_outside
    reasons: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}  # whether a file is missing, why, which rows

    def records() -> Iterator[Record]:
        number = -1
        for number, (importer.where, row) in enumerate(track(rows, None, f"Rows of {name}")):
            try:
                yield importer.record(row, f"{name}/{number}", options.request)
            except ValueError as error:
                reasons[isinstance(error, MissingFile)].setdefault(str(error), []).append(importer.where)
        os.sync()  # what was unpacked
        shapes = [f"{shape} ({count:,})" for shape, count in importer.shapes.items()]
        shapes = ", ".join(shapes if shapes[1:] else importer.shapes or +importer.tried) or "nothing that is known"
        missing = sum(map(len, reasons[True].values()))
        none = f"; none of their files is in {media}/ (--media)" if missing and missing == number + 1 else ""
        console.print(f"{source.name or name}{what}: {shapes}, {counted(number + 1, 'row')}{none}")
        if importer.unused:
            unused = (f"{column} ({n:,}{texts.nearest(column)})" for column, n in sorted(importer.unused.items()))
            console.print("Not used:", ", ".join(unused))
        if count := importer.dropped:
            begin = counted(count, "conversation begins", "conversations begin")
            console.print(f"{begin} with the assistant; this turn is left out.")
        if count := importer.repeated:
            were = counted(count, "id was there already and ends", "ids were there already and end")
            console.print(f"{were} in #2, #3 and so on.")
        if bare := importer.unanswered:
            have = f"of {counted(importer.asked, 'question')} {'has' if len(bare) == 1 else 'have'} no answer"
            console.print(f"{len(bare):,} {have}. A training that learns it refuses it; the first is {bare[0]}.")
        gone = "row names a file that is missing and is", "rows name a file that is missing and are"
        bad = "row cannot be used and is", "rows cannot be used and are"
        for what_of, found in ((gone, reasons[True]), (bad, reasons[False])):
            more = [f"{at[0]}{f' and {len(at) - 1:,} more' * bool(at[1:])}: {reason}" for reason, at in found.items()]
            if lines := [shorten(line, SHOWN_LETTERS, placeholder=" ...") for line in more]:
                console.print(listed(f"{counted(sum(map(len, found.values())), *what_of)} left out", lines))
        if not importer.shapes:
            raise ValueError(f"No row of {source} can be used, so nothing is written.")

    write_records(out, records())
    shown = ", ".join(f"{count:,} {kind}" for kind, count in importer.shown.items())
    console.print(f"Written: {out}, {counted(importer.shapes.total(), 'record')} ({shown}).")
    return int(any(reasons.values()))
