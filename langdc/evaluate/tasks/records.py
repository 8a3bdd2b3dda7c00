"""Questions of any record file, of kinds of the user's own: with options, or open and scored by a metric."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from langdc.config import MemberConfig, check
from langdc.data.records import QuestionRecord, Record, read_readable
from langdc.evaluate import answers
from langdc.evaluate.metrics import Metric, metrics
from langdc.evaluate.tasks.base import Benchmark, Task, tasks
from langdc.hashing import file_hash
from langdc.registry import nearest

Named = str | dict[str, Any]
"""A metric's name, or its name and settings."""
MALFORMED = "malformed"
"""The kind under which lines that cannot be read are counted; each is one question, answered wrongly."""


@tasks.register("records")
class RecordsTask(Task):
    """The questions of `data`, a JSON-lines file; `kinds` limits them, None asks all.

    The model is shown context, question and options. A question with options is scored by the letter, or the option's
    words, in the reply. Open ones are scored by the metric of their kind in `metrics`, a name or a name with settings
    as {name: numeric, tolerance: 1}, else by `metric`. A question without an answer is asked and not scored. A line
    that cannot be read, or names no video or image, stays a sample, which fails. Raises ValueError if no line is
    usable, for an unknown kind or metric, and for an answer that no reply could meet.
    """

    needs_answers: ClassVar[bool] = False
    """Whether a question without an answer is a mistake in the file."""

    def __init__(
        self,
        data: str,
        kinds: list[str] | None = None,
        metric: Named = "exact",
        metrics: dict[str, Named] | None = None,
    ) -> None:
        self.data, self.root = Path(data), Path(data).parent
        self._hash = file_hash(self.data) if self.data.is_file() else ""
        readable, mistakes = read_readable(self.data)
        fitting = [record for record in readable if record.media_path("") is not None]
        if not fitting:
            raise ValueError(
                f"{self.data}: {len(readable)} record(s) have neither video nor image: {readable[0].id!r} ... This "
                "task asks about one video or image each; name it in each record (video or image; media is not read)."
            )
        known = {question.kind for record in fitting for question in record.questions}
        if not known:
            raise ValueError(f"{self.data} has no questions. Give a file whose records have some.")
        for name in [*(kinds or ()), *(metrics or ())]:
            if name not in known:
                raise ValueError(f"{self.data} has no questions of the kind {name!r}.{nearest(str(name), known)}")
        if kinds == []:
            raise ValueError("kinds is empty. Name some kinds, or leave it out to ask all.")
        self.records = []
        for record in readable:
            if record.media_path("") is None:
                mistakes[record.line or 0] = "the record has neither video nor image; name one (media is not read)"
            elif questions := [each for each in record.questions if kinds is None or each.kind in kinds]:
                if self.needs_answers and not all(question.answered for question in questions):
                    mistakes[record.line or 0] = "a question has no answer to compare with; write one"
                else:
                    self.records.append(record.model_copy(update={"questions": questions}))
        found = dict.fromkeys(question.kind for record in self.records for question in record.questions)
        self.target_kinds = (*found, *[MALFORMED] * bool(mistakes))
        self.metrics = self._metrics(found, metric, metrics or {})
        placed, broken = {record.line or 0: record for record in self.records}, dict[str, str]()
        for line, why in mistakes.items():
            name = f"{self.data.name}:{line}"
            broken[name] = f"{self.data}, line {line}: {why}"
            stands = QuestionRecord(kind=MALFORMED, question=f"(what {name} asks cannot be read)", answer="(unknown)")
            placed[line] = Record(id=name, questions=[stands])
        self.broken, self.records = broken, [placed[line] for line in sorted(placed)]

    def _metrics(self, kinds: Iterable[str], default: Named, given: Mapping[str, Named]) -> dict[str, Metric]:
        """By kind the metric of its open questions; ValueError for one that is unknown, not needed or cannot be met."""
        _metric("metric", default)
        built = {kind: _metric(f"metrics: {kind}", given.get(kind, default)) for kind in kinds}
        asked = [(record, question) for record in self.records for question in record.questions]
        for kind in set(given) & set(kinds):
            if all(question.options for _, question in asked if question.kind == kind):
                raise ValueError(f"metrics: all questions of the kind {kind!r} have options, which need no metric.")
        for record, question in asked:
            if not question.options and question.answered:
                metric = built[question.kind]
                found = metric.parse(question.answer, question.answer)
                if not metric.judged and (found is None or metric.score(question.answer, found) < 1):
                    raise ValueError(
                        f"{self.data}, line {record.line}: no reply can be right, since the metric of the kind "
                        f"{question.kind!r} cannot read the answer {question.answer!r}. Correct it, or set metrics."
                    )
        return built

    def path(self, record: Record) -> Path:
        if record.id in self.broken:
            raise ValueError(self.broken[record.id])
        found = record.media_path(self.data.parent)
        assert found is not None
        return found

    def judged(self, question: QuestionRecord) -> bool | None:
        if not any(metric.judged for metric in self.metrics.values()):
            return None
        metric = self.metrics.get(question.kind)  # a line that cannot be read has none
        return not question.options and metric is not None and metric.judged

    def parse(self, question: QuestionRecord, text: str) -> str | None:
        if question.options:
            return answers.choice(text, question.options)
        return self.metrics[question.kind].parse(question.answer, text)

    def score(self, question: QuestionRecord, found: str) -> float:
        if question.options:
            return float(found == question.answer)
        return self.metrics[question.kind].score(question.answer, found)

    def data_hash(self) -> str:
        if file_hash(self.data) != self._hash:
            raise ValueError(f"{self.data} was changed while it was read. Start again.")
        return self._hash


def _metric(where: str, given: Named) -> Metric:
    with Benchmark.located(where):
        member = check(MemberConfig, given if isinstance(given, dict) else {"name": given}, "the metric")
        return metrics.build(member.name, **member.settings)
