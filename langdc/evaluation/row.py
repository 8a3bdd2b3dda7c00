"""One row of an evaluation at work: its model asks, and what it says is written down line by line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from langdc.data.records import Record
from langdc.density import cue_recall, densities
from langdc.evaluation import controls, matching
from langdc.evaluation.library import Asked, Library, Shelf
from langdc.evaluation.results import LineFile
from langdc.evaluation.settings import EvalConfig, RowConfig
from langdc.evaluation.tasks import Task
from langdc.log import get_logger
from langdc.types import Answer

logger = get_logger(__name__)


@dataclass(eq=False)
class Row:
    """A row, from its model to its lines. `matched`: the lines of the row that this one copies or matches; `records`:
    the videos it is asked about.
    """

    config: EvalConfig
    row: RowConfig
    task: Task
    out: LineFile
    library: Library
    shelf: Shelf
    matched: Sequence[Mapping[str, Any]] = ()
    lm: Any = field(default=None, init=False)
    preprocessing: str = field(default="", init=False)
    need: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.config.limit, self.row.limit) if limit is not None]
        self.records = self.task.records[: min(limits, default=None)]
        self._asked = {record.id for record in self.records}

    # ---- before the questions

    def equip(self, lm: Asked, preprocessing: str, need: frozenset[str]) -> None:
        """Take a bare model, with the row's compressors and controls, the budget being set where it matches another.

        `preprocessing`: the hash of what decides what its encoders see; `need`: what its rows need to know of a video.
        """
        if self.row.control is not None:
            counts = {line["video"]: line["tokens"] for line in self.matched if line["type"] == "video"}
            name_of, seed = self.library.names.__getitem__, self.config.seed
            control = controls.build(self.row.control, lm.model.compressor, lm.model.backbone, counts, name_of, seed)
            kind: Any = type(lm)
            self.lm = kind(lm.model, control)
        else:
            tokens = self.out.by_key["calibration"]["tokens"] if self.row.calibrated else None
            self.lm = matching.equipped(lm, self.row, tokens)
        self.lm.compressor.to(next(lm.model.parameters()).device)
        self.preprocessing, self.need = preprocessing, need

    def calibrate(self, lm: Asked, preprocessing: str) -> None:
        """Set the budget, unless that was done: aims at what the matched row took for the videos of this row."""
        if not self.row.calibrated or "calibration" in self.out:
            return
        lines = [line for line in self.matched if line.get("video") in self._asked]
        took = matching.spent(lines, matching.measure_of(self.row), text=False)
        if not took:
            raise ValueError(
                f"Row {self.row.name!r} matches what {self.row.match!r} took, and that row has no figure of it for "
                "these videos. Look at its failures; delete its file if an earlier version wrote it."
            )
        videos = self.shelf.open(matching.equipped(lm, self.row, tokens=1), preprocessing)
        found = matching.calibrate(lm, self.row, fmean(took.values()), videos, self.config.batch_size)
        self.out.append([{"type": "calibration", "key": "calibration", **found}])

    def introduce(self) -> None:
        """Say what the row runs."""
        parameters = list(self.lm.model.parameters())
        about = {
            "name": self.row.name,
            "dtype": str(parameters[0].dtype).removeprefix("torch."),
            "device": str(parameters[0].device),
            "parameters": sum(p.numel() for p in parameters),
        }
        self.out.append([{"type": "row", "key": "row", **about}])

    # ---- questions

    def lacks(self, record: Record) -> bool:
        """Whether a video has questions for this row that were not asked."""
        if record.id not in self._asked:
            return False
        asked = all(_key(record, number) in self.out for number in range(len(record.questions)))
        return not asked or not (f"video/{record.id}" in self.out or self.out.by_key[_key(record, 0)]["failed"])

    def answer(self, records: Sequence[Record]) -> None:
        """Ask all questions about some videos, in one batch where that works."""
        opened = []
        for record in records:
            try:
                opened.append((record, self._open(record)))
            except ValueError as error:
                self._fail(record, error)
        if not opened:
            return
        try:
            batch = [(video, self.task.prompt(question)) for record, video in opened for question in record.questions]
            answers = iter(self.lm.answer(batch, max_new_tokens=self.config.max_new_tokens))
        except ValueError as error:
            if len(opened) == 1:
                self._fail(opened[0][0], error)
            else:  # find out which
                for record, _ in opened:
                    self.answer([record])
            return
        for record, _ in opened:
            self._write(record, [next(answers) for _ in record.questions])

    def _open(self, record: Record) -> Any:
        return self.library.open(self.lm, self.preprocessing, record, self.task.path(record), self.need)

    def _write(self, record: Record, answers: list[Answer]) -> None:
        first = answers[0]
        sizes = {"tokens": first.tokens, "segment_tokens": first.segment_tokens}
        truth = {"densities": densities(record.segments), "targets": [segment.caption for segment in record.segments]}
        truth |= self.library.about(self.preprocessing, record)
        video = {"type": "video", "key": f"video/{record.id}", "video": record.id, **sizes, **truth}
        lines = [{**video, "captions": first.captions, "cue_recall": _recall(record, first.captions)}]
        for line, question, answer in zip(_questions(record), record.questions, answers, strict=True):
            said = self.task.parse(question, answer.text)
            score = 0.0 if said is None else self.task.score(question, said)
            verdict = {"parsed": said, "score": score, "correct": score == 1, "failed": False, "reason": None}
            found = {"answer": answer.text, **verdict, "tokens": answer.tokens}
            held = {"kv_bytes": answer.kv_bytes, "kv_text_bytes": answer.kv_text_bytes}
            lines.append({**line, **found, **held, "flops": answer.flops})
        self.out.append(lines)

    def _fail(self, record: Record, error: ValueError) -> None:
        logger.warning("%s: %s failed: %s", self.row.name, record.id, error)
        verdict = {"parsed": None, "score": 0.0, "correct": False, "failed": True, "reason": str(error)}
        found = {"answer": None, **verdict, "tokens": None, "flops": None}
        self.out.append({**line, **found} for line in _questions(record))

    # ---- after the questions

    def time(self, records: Sequence[Record]) -> Iterator[None]:
        """Ask each of the first of some videos its first question alone, one at a time, so that rows take turns.

        The warm-up is repeated when a run goes on.
        """
        warmup, most = self.config.warmup_videos, self.config.timing_videos
        readable = [record for record in records if f"video/{record.id}" in self.out][: warmup + most]
        if not most or all(f"timing/{record.id}" in self.out for record in readable):
            return
        for number, record in enumerate(readable):
            question = self.task.prompt(record.questions[0])
            try:
                answer = self._open(record).ask(question, max_new_tokens=self.config.max_new_tokens)
            except ValueError as error:  # its file has gone since it was answered
                logger.warning("%s: %s is not timed: %s", self.row.name, record.id, error)
                continue
            about = {"type": "timing", "key": f"timing/{record.id}", "video": record.id, "warm": number >= warmup}
            found = {"seconds": answer.seconds, "peak_bytes": answer.peak_bytes, "reply_tokens": answer.reply_tokens}
            self.out.append([{**about, **found}])
            yield

    def finish(self) -> None:
        """Write down how near the budget came to the matched row's, and that all is done."""
        if self.row.match is not None:
            measure = matching.measure_of(self.row)
            found = matching.compared(*(matching.spent(lines, measure) for lines in (self.out.lines, self.matched)))
            self.out.append([{"type": "budget", "key": "budget", "match": self.row.match, "measure": measure, **found}])
            if not found["equal"]:
                logger.warning("%s: no equal budget with %s: %s.", self.row.name, self.row.match, found)
        answers = self.out.of("answer")
        failed, right = sum(line["failed"] for line in answers), sum(line["correct"] for line in answers)
        self.out.append([{"type": "finished", "key": "finished", "answers": len(answers), "failed": failed}])
        logger.info("%s: %d of %d answers right, %d failed.", self.row.name, right, len(answers), failed)


def _key(record: Record, number: int) -> str:
    return f"{record.id}/{number}"


def _recall(record: Record, captions: list[str] | None) -> list[float | None] | None:
    """The share of each segment's cues that its caption mentions; None where the record names no cues."""
    if captions is None or len(captions) != len(record.segments):
        return None
    return [cue_recall(said, segment) for said, segment in zip(captions, record.segments, strict=True)]


def _questions(record: Record) -> Iterator[dict[str, Any]]:
    for number, question in enumerate(record.questions):
        yield {
            "type": "answer",
            "key": _key(record, number),
            "video": record.id,
            "number": number,
            "kind": question.kind,
            **({"labels": question.labels} if question.labels else {}),
            "question": question.question,
            "expected": question.answer,
        }
