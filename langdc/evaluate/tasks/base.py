"""What a task is: videos, questions, how they are put, and what a reply is worth."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from langdc import jsonl
from langdc.config import MemberConfig, check
from langdc.data.records import INSTRUCTION, LETTERS, OUTSIDE, QuestionRecord, Record, leads_outside
from langdc.evaluate.choices import choice
from langdc.hashing import json_hash
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
    root: Path | None = None
    """The folder that its media are in; None where that is not known."""

    @abstractmethod
    def path(self, record: Record) -> Path:
        """The video (a file, or a folder of frames) or image of a record; ValueError for one that is `broken`."""

    def clip(self, record: Record) -> Record:
        """The record with the bounds that its clip is to have; by default those it names."""
        return record

    def prompt(self, question: QuestionRecord) -> str:
        """What the model is asked."""
        return question.prompt()

    @abstractmethod
    def parse(self, question: QuestionRecord, text: str) -> str | None:
        """The answer in a reply; None where none can be read."""

    @abstractmethod
    def score(self, question: QuestionRecord, found: str) -> float:
        """What an answer is worth, from 0 to 1."""

    def judged(self, question: QuestionRecord) -> bool | None:
        """Whether the judge alone scores the replies to a question; None in a task where it scores none."""
        return None

    def submission(self, rows: list[dict[str, Any]]) -> Any:
        """What is handed in where answers are not published, as JSON, of rows with id, question, reply and answer.

        `answer` is what was read of the reply. By default the rows themselves.
        """
        return rows

    @abstractmethod
    def data_hash(self) -> str:
        """The sha256 of what is asked."""


def build_task(config: MemberConfig, allow_outside: bool) -> Task:
    """The task of some settings; without `allow_outside`, records whose media are outside its folder are `broken`."""
    task, outside = tasks.build(config.name, **config.settings), dict[str, str]()
    for record in task.records if task.root is not None and not allow_outside else ():
        if record.id not in task.broken and leads_outside(path := task.path(record), task.root or Path()):
            outside[record.id] = f"{path} {OUTSIDE}."
    task.broken = {**task.broken, **outside}
    return task


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

    A member says where it comes from (`source`) and reads its files (`load`); `missing` lists the videos that are not
    there. Raises ValueError if annotation files are missing or broken.
    """

    source: ClassVar[Source]

    root: Path

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        lacking = [name for name in self.files if not (self.root / name).exists()]
        if lacking:
            raise ValueError(
                f"{self.source.title}: {self.root} lacks {', '.join(lacking)}. {self.source.get} Then look what "
                "else is missing: python data_prep/benchmarks.py NAME --root DIR"
            )
        asked: dict[str, tuple[Record, list[QuestionRecord]]] = {}
        for record, question in self.load():
            asked.setdefault(record.id, (record, []))[1].append(question)
        self.records = [record.model_copy(update={"questions": questions}) for record, questions in asked.values()]
        if not self.records:
            raise ValueError(f"{self.source.title}: {self.root} has no questions that were asked for.")
        self.target_kinds = tuple(dict.fromkeys(q.kind for record in self.records for q in record.questions))

    @property
    def files(self) -> tuple[str, ...]:
        """The annotation files that are read."""
        return self.source.files

    @abstractmethod
    def load(self) -> Iterable[tuple[Record, QuestionRecord]]:
        """Each question with its video, whose path is relative to `root`; those with the same id share one record."""

    def rows(self, name: str, columns: Iterable[str]) -> list[tuple[str, dict[str, Any]]]:
        """Rows of a .parquet, .jsonl, .csv or .json list, each with its place; ValueError if one lacks a column."""
        path = self.root / name
        if path.suffix == ".json":
            rows = jsonl.read_json(path)
        elif path.suffix == ".jsonl":
            rows = jsonl.read(path, strict=True)
        else:
            from datasets import Dataset  # heavy, and only benchmarks in tables need it

            read = {".parquet": Dataset.from_parquet, ".csv": Dataset.from_csv}[path.suffix]
            blank = {"keep_default_na": False, "na_values": [""]} if path.suffix == ".csv" else {}  # "None" is text
            rows = list(read(str(path), keep_in_memory=True, **blank))
        located = [(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]
        for where, row in located:
            if lacking := [column for column in columns if column not in row]:
                raise ValueError(f"{where}: there is no {', '.join(lacking)}. It has: {', '.join(row)}.")
        return located

    @staticmethod
    def question(where: str, **fields: Any) -> QuestionRecord:
        """The question of a row; ValueError that names the place if it is malformed or has no answer."""
        found = check(QuestionRecord, fields, where)
        if not found.answered:
            raise ValueError(f"{where}: the question has no answer, so no reply can be scored. Fetch the file again.")
        return found

    @staticmethod
    @contextmanager
    def located(where: object) -> Iterator[None]:
        """Put the place in front of a ValueError's message."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def path(self, record: Record) -> Path:
        if record.id in self.broken:
            raise ValueError(self.broken[record.id])
        found = record.media_path(self.root)
        assert found is not None  # every benchmark is about videos
        return found

    def missing(self) -> list[Path]:
        """The videos that are asked about and not there, in order."""
        asked = dict.fromkeys(self.path(record) for record in self.records)
        return [path for path in asked if not path.exists()]

    def data_hash(self) -> str:
        return json_hash([record.model_dump(mode="json", exclude_defaults=True) for record in self.records])


class MultipleChoice(Benchmark):
    """Questions with lettered options; the reply's letter is right or wrong."""

    instruction: ClassVar[str] = INSTRUCTION
    """What follows the options."""
    listing: ClassVar[str] = "{}. {}"
    """How an option is written: its letter, its words."""

    def prompt(self, question: QuestionRecord) -> str:
        return question.prompt(self.instruction, self.listing)

    def parse(self, question: QuestionRecord, text: str) -> str | None:
        return choice(text, question.options)

    def score(self, question: QuestionRecord, found: str) -> float:
        return float(found == question.answer)

    @staticmethod
    def from_candidates(where: str, kind: str, row: Mapping[str, Any]) -> QuestionRecord:
        """The question of a row whose `answer` is one of its `candidates`; ValueError if none is."""
        options, answer = [str(option) for option in row["candidates"]], str(row["answer"])
        if answer not in options:
            raise ValueError(
                f"{where}: the answer {row['answer']!r} is none of the candidates {options}. Fetch it again."
            )
        letter = LETTERS[options.index(answer)]
        return Benchmark.question(where, kind=kind, question=row["question"], answer=letter, options=options)


def clock_seconds(clock: str) -> float:
    """The seconds of "00:01:02.5" or "00:01:02,500"."""
    hours, minutes, seconds = clock.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
