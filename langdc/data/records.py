"""The project's data format: one record per line of a JSON-lines file, checked strictly when it is read.

    {"id": "v7", "video": "videos/v7.mp4", "segments": [{"caption": "red square left", "density": 1}],
     "questions": [{"kind": "shape", "question": "what shape is the red object ?", "answer": "square"}]}

    {"id": "c1", "media": [{"video": "a.mp4", "end": 4.5}, {"image": "b.jpg"}],
     "messages": [{"role": "user", "content": "<video> <image> is this in the video ?"},
                  {"role": "assistant", "content": "yes"}, ...]}

Paths are relative to the file's folder and stay in it, unless outside is allowed; `start` and `end` are seconds; a
video may be a folder of frames, then `fps` says how many a second. <video> and <image> in a question or message say
where the media stand, in order; without any they stand before the first question. Every reading error names file and
line.
"""

import os
import re
import string
import textwrap
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from langdc import jsonl
from langdc.config import check
from langdc.log import get_logger
from langdc.text import counted

log = get_logger(__name__)

LETTERS = string.ascii_uppercase
INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""What follows the options of a multiple-choice question."""
MARKS = re.compile("<video>|<image>")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
"""What counts as a still image, by its name; anything else as a video."""
OUTSIDE = (
    "leads outside the folder of its data, by its path or a symbolic link. To allow it, give --allow-outside (in a "
    "config of a training train.allow_outside: true, of an evaluation allow_outside: true)"
)
SHOWN_MISTAKES = 10
SHOWN_LETTERS = 300


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ObjectRecord(_Strict):
    """An object that a segment shows, for `langdc probe`."""

    boxes: list[Annotated[list[float], Field(min_length=4, max_length=4)] | None] = Field(min_length=1)
    """A box for each of equal parts of the segment, null where the object is not seen; a single box is for all of it.
    A box is left, top, right and bottom in fractions of the frame."""
    labels: dict[str, str] = {}
    """Labels of the object, such as {"colour": "red", "motion": "left"}."""
    phrase: str = ""
    """The words of the segment's caption that describe it; "" if none do."""

    @model_validator(mode="after")
    def _inside(self) -> Self:
        for left, top, right, bottom in filter(None, self.boxes):
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(
                    f"the box is {[left, top, right, bottom]}; give left < right and top < bottom, from 0 to 1"
                )
        if not any(self.boxes):
            raise ValueError("an object is seen nowhere; give at least one box")
        return self


class SegmentRecord(_Strict):
    """What one of the equal parts of a video shows: its caption, and the cues that its density counts."""

    caption: str
    """Empty where there is nothing to say."""
    density: int | None = Field(default=None, ge=0)
    """How much there is to say; null where it is to be counted from the cues."""
    subjects: list[str] = []
    attributes: list[str] = []
    actions: list[str] = []
    background: list[str] = []
    objects: list[ObjectRecord] = []
    labels: dict[str, str] = {}
    """Labels of the whole segment, such as {"background": "grey"}; for `langdc probe`, as are objects."""


class QuestionRecord(_Strict):
    """A question about the whole record, its answer, and the kind it is counted under."""

    kind: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str = ""
    """Of a multiple-choice question, the letter of the right option; empty where there is none, which `distill` with
    the model's own replies does not need."""
    options: list[str] = Field(default=[], max_length=26)
    """The choices, without letters; empty for open questions."""
    context: str = ""
    """Text before the question, such as subtitles."""
    labels: dict[str, str] = {}
    """What else results are broken down by, such as {"duration": "short"}."""

    @model_validator(mode="after")
    def _choice(self) -> Self:
        if self.answer and not self.answered:
            raise ValueError("the answer is blank; write one, or leave it out where there is none")
        if not self.question.strip():
            raise ValueError("the question is blank; write one")
        if self.options and self.answered and self.answer not in list(LETTERS[: len(self.options)]):
            raise ValueError(
                f"the answer {self.answer!r} is none of the {len(self.options)} options; give its letter, "
                f"A to {LETTERS[len(self.options) - 1]}"
            )
        if len(self.options) == 1:
            raise ValueError("one option is no choice; give two or more, or none")
        return self

    @property
    def answered(self) -> bool:
        """Whether there is an answer."""
        return bool(self.answer.strip())

    def prompt(self, instruction: str = INSTRUCTION, listing: str = "{}. {}") -> str:
        """The text that a model is asked: context, question, options and, where there are options, `instruction`.

        `listing`: how an option is written, from its letter and its words. The same in training and evaluation.
        """
        listed = [listing.format(*option) for option in zip(LETTERS, self.options, strict=False)]
        parts = [self.context, self.question, *listed, instruction if self.options else ""]
        return "\n".join(part for part in parts if part)


class Medium(_Strict):
    """A video, or the part of it between `start` and `end`, or an image."""

    video: str | None = Field(default=None, min_length=1)
    image: str | None = Field(default=None, min_length=1)
    start: float | None = Field(default=None, ge=0)
    end: float | None = Field(default=None, gt=0)
    fps: float | None = Field(default=None, gt=0)
    """Of a video that is a folder of frames: how many a second."""

    @model_validator(mode="after")
    def _one_file(self) -> Self:
        if self.video is not None and self.image is not None:
            raise ValueError("give video or image, not both")
        given = [name for name in ("start", "end", "fps") if getattr(self, name) is not None]
        if self.video is None and given:
            raise ValueError(
                f"{', '.join(given)}: only a video has these, and none is named; name one, or leave them out"
            )
        picture = Path(self.file or "").suffix.lower() in IMAGE_SUFFIXES
        if self.file and self.fps is None and picture != (self.image is not None):
            like = "an image; give it as image" if picture else f"no image ({', '.join(sorted(IMAGE_SUFFIXES))})"
            raise ValueError(f"{'video' if picture else 'image'} names {self.file!r}, which is called like {like}")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"start {self.start} must come before end {self.end}")
        return self

    @property
    def file(self) -> str | None:
        """Its path, relative to the record file's folder."""
        return self.video or self.image


class _Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Record(Medium):
    """One sample: a video, an image, several (`media`) or only text, with what is known and asked about it.

    `questions` are asked one by one; `messages` are one conversation, of which all turns of the assistant are learned.
    """

    id: str = Field(min_length=1)
    media: list[Medium] = []
    """Several videos and images, in the order in which they are shown."""
    segments: list[SegmentRecord] = []
    questions: list[QuestionRecord] = []
    messages: list[_Message] = []
    _line: int | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _single(cls, given: Any) -> Any:
        """One medium stands in the record itself, however it was given."""
        media = given.get("media") if isinstance(given, dict) else None
        if not isinstance(media, list) or len(media) != 1 or not isinstance(media[0], dict):
            return given
        if given.keys() & {"video", "image", *media[0]} or not media[0].keys() <= Medium.model_fields.keys():
            return given
        return {**{name: value for name, value in given.items() if name != "media"}, **media[0]}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.media and self.file is not None:
            raise ValueError("give the video or image by its own name or in media, not both")
        if any(medium.file is None for medium in self.media):
            raise ValueError("an entry of media names neither video nor image")
        if self.segments and len(self.shown) > 1:
            raise ValueError(f"segments are those of one video, and {len(self.shown)} media are named")
        if self.questions and self.messages:
            raise ValueError("give questions or messages, not both")
        for question in self.questions:
            self._check_marks(question.prompt())
        if self.messages:
            self._check_turns()
        return self

    def _check_turns(self) -> None:
        turns = self.messages[1:] if self.messages[0].role == "system" else self.messages
        roles = [turn.role for turn in turns]
        if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
            raise ValueError(
                f"the turns are {', '.join(turn.role for turn in self.messages)}; after a system message, if there is "
                "one, user and assistant take turns, the assistant last"
            )
        for turn in self.messages:
            if not MARKS.sub("", turn.content).strip() and (turn.role == "assistant" or not self.shown):
                raise ValueError(f"a message of the {turn.role} is blank")
            if turn.role != "user" and MARKS.search(turn.content):
                raise ValueError(f"a message of the {turn.role} shows a medium; only the user shows some")
        self._check_marks("".join(turn.content for turn in turns))

    def _check_marks(self, text: str) -> None:
        marks = MARKS.findall(text)
        kinds = ["<video>" if medium.video is not None else "<image>" for medium in self.shown]
        if marks and marks != kinds:
            raise ValueError(
                f"the text has the marks {' '.join(marks)}, and the record names {' '.join(kinds) or 'no media'}; give "
                "each medium its mark, in order, or none"
            )

    @property
    def shown(self) -> Sequence[Medium]:
        """Its videos and images; none of a text."""
        return self.media or ([self] if self.file is not None else [])

    @property
    def line(self) -> int | None:
        """The line of the file it was read from, counted from 1."""
        return self._line

    def media_path(self, root: str | Path) -> Path | None:
        """Where its one video or image is, given the folder of the record file; None if it has none, or several."""
        return Path(root) / self.file if self.file else None


def read_records(path: str | Path, without: Container[int | None] = ()) -> list[Record]:
    """Read all records of a JSON-lines file (blank lines are skipped), but for those on the lines `without`.

    Raises ValueError if the file is missing or holds none, and one that lists the bad lines by number and reason:
    invalid JSON, a wrong value, an unknown key (with the nearest known one), an id given twice.
    """
    records, mistakes = read_readable(path)
    mistakes = {number: reason for number, reason in mistakes.items() if number not in without}
    if mistakes:
        raise _bad_lines(Path(path), mistakes)
    return [record for record in records if record.line not in without]


def read_readable(path: str | Path) -> tuple[list[Record], dict[int, str]]:
    """The records of a JSON-lines file that can be read, and why the other lines cannot be, by line number.

    Used where broken lines are counted. Raises ValueError if the file is missing or no line can be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no record file {path}. Check the path; `langdc data` makes record files.")
    records, mistakes, seen = [], {}, {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = _parsed(line, number)
            if record.id in seen:
                raise ValueError(f"the id {record.id!r} is already on line {seen[record.id]}; ids must differ.")
        except ValueError as error:
            mistakes[number] = textwrap.shorten(str(error), SHOWN_LETTERS, placeholder=" ...")
            continue
        seen[record.id] = number
        records.append(record)
    if mistakes and not records:
        raise _bad_lines(path, mistakes)
    if not records:
        raise ValueError(f"{path} holds no records. Make it again, as with `langdc data`.")
    return records, mistakes


def _parsed(line: bytes, number: int) -> Record:
    record = check(Record, jsonl.parse(line), "the record")
    record._line = number
    return record


def read_record(path: Path, offset: int, line: int) -> Record:
    """The record that begins at a byte of a file, on that line; ValueError names both where it is none."""
    with path.open("rb") as file:
        file.seek(offset)
        try:
            return _parsed(file.readline(), line)
        except ValueError as error:
            raise _bad_lines(path, {line: textwrap.shorten(str(error), SHOWN_LETTERS, placeholder=" ...")}) from None


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, leaving out what has its default; the file appears only when it is complete."""
    path = Path(path)
    lines = ({"id": record.id, **record.model_dump(exclude_defaults=True)} for record in records)
    with jsonl.making_folder(path.parent):
        jsonl.write_lines(path, lines)


@lru_cache(16)
def _homes(root: str) -> list[str]:
    """The real paths that files of a folder may have: the folder, and the blobs beside a Hugging Face snapshot."""
    folder = Path(os.path.realpath(root))
    # a snapshot of the Hugging Face cache links to files beside it
    blobs = [each.parents[1] / "blobs" for each in (folder, *folder.parents) if each.parent.name == "snapshots"]
    return [f"{str(each).rstrip('/')}/" for each in (folder, *blobs)]


def leads_outside(file: Path, root: Path) -> bool:
    """Whether a file, or a folder or a file in it, is outside a folder, by its path or by a symbolic link."""
    homes = tuple(_homes(os.path.abspath(root)))  # noqa: PTH100 (`_homes` follows links)
    try:
        real = os.path.realpath(file)
        inside = [link.path for link in os.scandir(real) if link.is_symlink()] if os.path.isdir(real) else []  # noqa: PTH112
    except (OSError, ValueError):  # an impossible name, or a folder without the right to read it
        return False
    return not all(f"{os.path.realpath(each)}/".startswith(homes) for each in (real, *inside))


def check_media(path: str | Path, records: list[Record], allow_outside: bool = False) -> list[Record]:
    """The records read from `path`; ValueError lists all whose video or image is missing or outside its folder."""
    root, missing, outside = Path(path).parent, [], []
    for record in records:
        for medium in record.shown:
            file, where = root / str(medium.file), f"line {record.line or '?'} (id {record.id!r})"
            if not allow_outside and leads_outside(file, root):
                outside.append(f"{where}: {medium.file}")
            elif not os.path.isfile(file) and (medium.fps is None or not file.is_dir()):  # noqa: PTH113 (names may be long)
                missing.append(f"{where}: there is no file {file}")
    if outside:
        raise ValueError(listed(f"{path}: in {counted(len(outside), 'record')} a video or image {OUTSIDE}", outside))
    if missing:
        message = listed(f"{path}: in {counted(len(missing), 'record')} a video or image is missing", missing)
        raise ValueError(f"{message}\nFetch the files, or take these records out.")
    return records


def listed(head: str, lines: list[str], shown: int = SHOWN_MISTAKES) -> str:
    """A title and, indented, the first lines below it, with the number of those left out."""
    more = [f"... and {len(lines) - shown} more"] * (len(lines) > shown)
    return "\n  ".join([f"{head}:", *lines[:shown], *more])


def _bad_lines(path: Path, mistakes: dict[int, str]) -> ValueError:
    lines = [f"line {number}: {reason}" for number, reason in mistakes.items()]
    return ValueError(listed(f"{path} has {len(mistakes)} bad line(s)", lines))
