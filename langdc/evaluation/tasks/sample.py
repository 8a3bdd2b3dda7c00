"""The built-in task: questions with one-word answers about the sample videos."""

import hashlib
import string
from pathlib import Path

from langdc.data.records import Record, read_records
from langdc.evaluation.tasks.base import Task, tasks
from langdc.registry import nearest
from langdc.sample.questions import TARGET_KINDS


def normalise(text: str) -> str:
    """Lower case, without punctuation and extra spaces: "(D)." is "d"."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


@tasks.register("sample")
class SampleTask(Task):
    """The held-out sample records, `data` a JSON-lines file; `kinds` limits the questions, None asks all.

    A reply is right when, normalised, it is the answer. Raises ValueError if a record has no video or image, or no
    question is left.
    """

    def __init__(self, data: str = "data/sample/test.jsonl", kinds: list[str] | None = None) -> None:
        self.data = Path(data)
        self.records = [_only(record, kinds) for record in read_records(self.data)]
        without = [record.id for record in self.records if record.media_path("") is None]
        if without:
            raise ValueError(
                f"{self.data}: {len(without)} record(s) have neither video nor image: {without[0]!r} ... This task "
                "asks about videos; name one in each record, or take these out."
            )
        self.records = [record for record in self.records if record.questions]
        known = {question.kind for record in read_records(self.data) for question in record.questions}
        if not known:
            raise ValueError(f"{self.data} has no questions. Give a file whose records have some.")
        if not self.records:
            raise ValueError(f"{self.data} has no questions of the kinds {kinds}.{nearest(str(kinds), known)}")
        self.target_kinds = tuple(kind for kind in TARGET_KINDS if kinds is None or kind in kinds)

    def path(self, record: Record) -> Path:
        found = record.media_path(self.data.parent)
        assert found is not None
        return found

    def correct(self, expected: str, text: str) -> bool:
        return normalise(expected) == normalise(text)

    def data_hash(self) -> str:
        with self.data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _only(record: Record, kinds: list[str] | None) -> Record:
    kept = [question for question in record.questions if kinds is None or question.kind in kinds]
    return record.model_copy(update={"questions": kept})
