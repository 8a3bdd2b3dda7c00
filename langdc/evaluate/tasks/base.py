"""What a task is: videos, questions, how they are put, and what a reply is worth."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from langdc import jsonl
from langdc.data.records import LETTERS, QuestionRecord, Record
from langdc.evaluate import answers
from langdc.hashing import text_hash
from langdc.registry import Registry

tasks: Registry["Task"] = Registry("task")


class Task(ABC):
    """Videos with questions. `target_kinds` are those that the headline accuracy is made of."""

    records: list[Record]
    target_kinds: tuple[str, ...]
    kind_weights: Mapping[str, float] | None = None
    """How much each kind weighs in the headline accuracy, where that is a mean over kinds and not over questions."""
    broken: Mapping[str, str] = MappingProxyType({})
    """Records that stand for annotations that cannot be read, by id, with the reason: they fail when asked."""

    @abstractmethod
    def path(self, record: Record) -> Path:
        """The video (a file, or a folder of frames) or image of a record; ValueError for one that is `broken`."""

    def clip(self, record: Record) -> Record:
        """The record with the bounds that its clip is to have; by default those it names."""
        return record

    def prompt(self, question: QuestionRecord) -> str:
        """What the model is asked; by default the question as it stands."""
        return question.question

    @abstractmethod
    def parse(self, question: QuestionRecord, text: str) -> str | None:
        """The answer in a reply; None where none can be read."""

    @abstractmethod
    def score(self, question: QuestionRecord, found: str) -> float:
        """What an answer is worth, from 0 to 1."""

    @abstractmethod
    def data_hash(self) -> str:
        """The sha256 of what is asked."""


@dataclass(frozen=True)
class Source:
    """Where a benchmark comes from: `files` that its folder must have, `get` says how, `licence` under what terms.

    `fields_as`: the code whose reading of the files ours follows. `run`: what has been run so far.
    """

    title: str
    page: str
    licence: str
    files: tuple[str, ...]
    get: str
    fields_as: str
    run: str = "not yet run on the real files"


class Benchmark(Task):
    """A published benchmark in a local folder `root`, as its authors publish it.

    A member says where it comes from (`source`) and reads its files (`load`); which videos are missing is told by
    `missing`. Raises ValueError if annotation files are missing or broken.
    """

    source: ClassVar[Source]

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        lacking = [name for name in self.source.files if not (self.root / name).exists()]
        if lacking:
            raise ValueError(
                f"{self.source.title}: {self.root} lacks {', '.join(lacking)}. {self.source.get} Then look what "
                "else is missing: python data_prep/benchmarks.py NAME --root DIR"
            )
        self.records = list(self.load())
        if not self.records:
            raise ValueError(f"{self.source.title}: {self.root} has no questions that were asked for.")
        self.target_kinds = tuple(dict.fromkeys(q.kind for record in self.records for q in record.questions))

    @abstractmethod
    def load(self) -> Iterable[Record]:
        """Read the annotation files; media paths are relative to `root`."""

    def path(self, record: Record) -> Path:
        found = record.media_path(self.root)
        assert found is not None  # every benchmark is about videos
        return found

    def missing(self) -> list[Path]:
        """The videos that are asked about and not there, in order."""
        asked = dict.fromkeys(self.path(record) for record in self.records)
        return [path for path in asked if not path.exists()]

    def data_hash(self) -> str:
        asked: list[Any] = [record.model_dump(mode="json", exclude_defaults=True) for record in self.records]
        return text_hash(json.dumps(asked, sort_keys=True))


class MultipleChoice(Benchmark):
    """Questions with lettered options; the reply's letter is right or wrong."""

    instruction: ClassVar[str] = "Answer with the option's letter from the given choices directly."
    """What follows the options."""
    listing: ClassVar[str] = "{}. {}"
    """How an option is written: its letter, its words."""

    def prompt(self, question: QuestionRecord) -> str:
        listed = [self.listing.format(*option) for option in zip(LETTERS, question.options, strict=False)]
        parts = [question.context, question.question, *listed, self.instruction]
        return "\n".join(part for part in parts if part)

    def parse(self, question: QuestionRecord, text: str) -> str | None:
        return answers.choice(text, question.options)

    def score(self, question: QuestionRecord, found: str) -> float:
        return float(found == question.answer)


@contextmanager
def located(where: object) -> Iterator[None]:
    """Put the place in front of a ValueError's message."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def option_letter(answer: object, options: list[str]) -> str:
    """The letter of the option that is the answer; ValueError if none is."""
    if str(answer) not in options:
        raise ValueError(f"the answer {answer!r} is none of the candidates {options}. Fetch the file again.")
    return LETTERS[options.index(str(answer))]


def read_json(path: Path) -> Any:
    """A JSON file; ValueError that names file and line if it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Fetch it again.") from None


def read_rows(path: Path, wanted: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a .parquet, .jsonl, .csv or .json list, each with the columns `wanted` at least.

    Raises ValueError that names file, row and column if one is missing.
    """
    if path.suffix == ".json":
        rows = read_json(path)
    elif path.suffix == ".jsonl":
        rows = jsonl.read(path, strict=True)
    else:
        from datasets import Dataset  # heavy, and only benchmarks in tables need it

        kind = {".parquet": Dataset.from_parquet, ".csv": Dataset.from_csv}[path.suffix]
        rows = list(kind(str(path), keep_in_memory=True))
    for number, row in enumerate(rows, 1):
        lacking = [name for name in wanted if name not in row]
        if lacking:
            raise ValueError(f"{path}, row {number}: there is no {', '.join(lacking)}. It has: {', '.join(row)}.")
    return rows
