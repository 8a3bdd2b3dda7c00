"""The built-in task: questions with one-word answers about the sample videos, or about videos of your own."""

from pathlib import Path

from langdc.data.records import QuestionRecord, Record, read_readable
from langdc.evaluate.answers import normalise, without_thinking
from langdc.evaluate.tasks.base import Task, tasks
from langdc.hashing import file_hash
from langdc.registry import nearest
from langdc.sample.questions import TARGET_KINDS

MALFORMED = "malformed"
"""The kind under which lines that cannot be read are counted; each is one question, answered wrongly."""


@tasks.register("sample")
class SampleTask(Task):
    """The held-out sample records, or others: `data` a JSON-lines file; `kinds` limits the questions, None asks all.

    Accuracy is over the sample's target kinds; over all that are asked where the file has none of those. A reply is
    right when, normalised, it is the answer. A line that cannot be read, or names no video or image, stays a sample,
    which fails. Raises ValueError if no line is usable or no question is left.
    """

    def __init__(self, data: str = "data/sample/test.jsonl", kinds: list[str] | None = None) -> None:
        self.data = Path(data)
        readable, mistakes = read_readable(self.data)
        fitting = [record for record in readable if record.media_path("") is not None]
        if not fitting:
            raise ValueError(
                f"{self.data}: {len(readable)} record(s) have neither video nor image: {readable[0].id!r} ... This "
                "task asks about videos; name one in each record."
            )
        known = {question.kind for record in fitting for question in record.questions}
        if not known:
            raise ValueError(f"{self.data} has no questions. Give a file whose records have some.")
        asked: dict[int, Record] = {}
        for record in fitting:
            if questions := [each for each in record.questions if kinds is None or each.kind in kinds]:
                asked[record.line or 0] = record.model_copy(update={"questions": questions})
        if not asked:
            raise ValueError(f"{self.data} has no questions of the kinds {kinds}.{nearest(str(kinds), known)}")
        for record in readable:
            if record.media_path("") is None:
                mistakes[record.line or 0] = "the record has neither video nor image; name one"
        for number, record in asked.items():
            if not all(question.answered for question in record.questions):
                mistakes[number] = "a question has no answer to compare with; write one"
        usable = [record for number, record in asked.items() if number not in mistakes]
        found = tuple(dict.fromkeys(question.kind for record in usable for question in record.questions))
        targets = tuple(kind for kind in TARGET_KINDS if kinds is None or kind in kinds)
        self.target_kinds = (targets if set(targets) & set(found) else found) + (MALFORMED,) * bool(mistakes)
        broken: dict[str, str] = {}
        for number, why in mistakes.items():
            name = f"{self.data.name}:{number}"
            broken[name] = f"{self.data}, line {number}: {why}"
            stands = QuestionRecord(kind=MALFORMED, question=f"(what {name} asks cannot be read)", answer="(unknown)")
            asked[number] = Record(id=name, questions=[stands])
        self.broken, self.records = broken, [asked[number] for number in sorted(asked)]

    def path(self, record: Record) -> Path:
        if record.id in self.broken:
            raise ValueError(self.broken[record.id])
        found = record.media_path(self.data.parent)
        assert found is not None
        return found

    def parse(self, question: QuestionRecord, text: str) -> str | None:
        return normalise(without_thinking(text)) or None

    def score(self, question: QuestionRecord, found: str) -> float:
        return float(found == normalise(question.answer))

    def data_hash(self) -> str:
        return file_hash(self.data)
