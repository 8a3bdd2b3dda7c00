"""Ask every row's model the task's questions and write down what it says, so that a run can stop and go on anywhere.

Each video is decoded and encoded once for all rows with the same encoders and sampling.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from langdc.checkpoint import locate, read_card
from langdc.config import CalibrationConfig, EvalConfig, RowConfig
from langdc.data.records import Record, SegmentRecord
from langdc.density import Cues, cue_recall
from langdc.evaluation import controls, matching
from langdc.evaluation.cost import training_record
from langdc.evaluation.library import Asked, Library, Shelf, sight
from langdc.evaluation.results import LineFile, RunFolder
from langdc.evaluation.tasks import Task
from langdc.log import console, get_logger
from langdc.pipeline import VideoLM
from langdc.types import Answer

logger = get_logger(__name__)


def load_row(row: RowConfig) -> Asked:
    """Load the model of a row, with other compressors if the row says so and their budgets are known."""
    if row.calibrated:
        return VideoLM.from_pretrained(row.model)
    return VideoLM.from_pretrained(row.model, *(m.model_dump() if m else None for m in (row.compressor, row.kv)))


def identity(config: EvalConfig, task: Task) -> dict:
    """What must stay the same for a run to go on: settings, weights, questions, and what budgets are set on."""
    weights = {row.name: read_card(locate(row.model))["weights_sha256"] for row in config.rows}
    settings = config.model_dump(mode="json", exclude={"output"})
    found = {"config": settings, "weights_sha256": weights, "data_sha256": task.data_hash()}
    if (calibration := _needed(config)) is not None:
        with calibration.data.open("rb") as file:
            found["calibration_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _needed(config: EvalConfig) -> CalibrationConfig | None:
    return config.calibration if any(row.calibrated for row in config.rows) else None


def evaluate(
    config: EvalConfig, task: Task, command: Sequence[str] = (), load: Callable[[RowConfig], Asked] = load_row
) -> RunFolder:
    """Evaluate all rows, or what is missing of them, into `config.output`.

    A video that cannot be read or answered scores 0 on its questions and is counted as failed; the run goes on. Raises
    ValueError for settings that cannot work and for a folder that holds a run of something else.
    """
    others = matching.other_videos(calibration, task) if (calibration := _needed(config)) is not None else []
    info = {
        "target_kinds": list(task.target_kinds),
        "training": {row.name: training_record(row.model) for row in config.rows},
    }
    folder = RunFolder.start(config.output, identity(config, task), info, command)
    library = Library(LineFile(folder.directory / "encoding.jsonl"))
    shelf = Shelf(others, Library(LineFile(folder.directory / "calibration.jsonl")))
    with _progress() as progress:
        for row in config.rows:
            out = LineFile(folder.row_path(row.name))
            if "finished" not in out:
                matched = LineFile(folder.row_path(row.match)).lines if row.match is not None else []
                _Row(config, row, task, out, library, shelf, matched, progress).run(load(row))
    return folder


def failures(folder: RunFolder) -> int:
    """How many answers of all rows failed."""
    return sum(line["failed"] for name in folder.names() for line in LineFile(folder.row_path(name)).of("answer"))


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("videos"))
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)


@dataclass(eq=False)
class _Row:
    """One row at work."""

    config: EvalConfig
    row: RowConfig
    task: Task
    out: LineFile
    library: Library
    shelf: Shelf
    matched: Sequence[Mapping[str, Any]]
    """The lines of the row that this one copies or matches."""
    progress: Progress

    def run(self, lm: Asked) -> None:
        """Set the budget, answer, time, finish."""
        lm.model.to(self._device())
        self.lm = self._equipped(lm)
        self.sight = sight(self.lm)
        self.lm.compressor.to(self._device())
        self.out.append([{"type": "row", "key": "row", **self._about()}])
        records = self._records()
        bar = self.progress.add_task(self.row.name, total=len(records))
        for chunk in _chunks(records, self.config.batch_size):
            self._answer([record for record in chunk if not self._done(record)])
            self.progress.advance(bar, len(chunk))
        self._time(records)
        self._compare()
        answers = self.out.of("answer")
        failed, right = sum(line["failed"] for line in answers), sum(line["correct"] for line in answers)
        self.out.append([{"type": "finished", "key": "finished", "answers": len(answers), "failed": failed}])
        logger.info("%s: %d of %d answers right, %d failed.", self.row.name, right, len(answers), failed)

    def _records(self) -> list[Record]:
        limits = [limit for limit in (self.config.limit, self.row.limit) if limit is not None]
        return self.task.records[: min(limits, default=None)]

    def _equipped(self, lm: Asked) -> Asked:
        if self.row.control is not None:
            counts = {line["video"]: line["tokens"] for line in self.matched if line["type"] == "video"}
            name_of, seed = self.library.names.__getitem__, self.config.seed
            lm.compressor = controls.build(self.row.control, lm.compressor, lm.model.host, counts, name_of, seed)
        if not self.row.calibrated:
            return lm
        if "calibration" not in self.out:
            self.out.append([{"type": "calibration", "key": "calibration", **self._calibrated(lm)}])
        return matching.equipped(lm, self.row, self.out.by_key["calibration"]["tokens"])

    def _calibrated(self, lm: Asked) -> dict[str, Any]:
        """Aims at what the matched row took for the videos that this row is asked about."""
        asked = {record.id for record in self._records()}
        lines = [line for line in self.matched if line.get("video") in asked]
        took = matching.spent(lines, matching.measure_of(self.row), text=False)
        if not took:
            raise ValueError(
                f"Row {self.row.name!r} matches what {self.row.match!r} took, and that row has no figure of it for "
                "these videos. Look at its failures; delete its file if an earlier version wrote it."
            )
        videos = self.shelf.open(matching.equipped(lm, self.row, tokens=1))
        return matching.calibrate(lm, self.row, fmean(took.values()), videos, self.config.batch_size)

    def _compare(self) -> None:
        """Write down how near the budget came to the matched row's."""
        if self.row.match is None:
            return
        measure = matching.measure_of(self.row)
        found = matching.compared(*(matching.spent(lines, measure) for lines in (self.out.lines, self.matched)))
        self.out.append([{"type": "budget", "key": "budget", "match": self.row.match, "measure": measure, **found}])
        if not found["equal"]:
            logger.warning("%s: no equal budget with %s: %s.", self.row.name, self.row.match, found)

    def _device(self) -> torch.device:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device(self.config.device or found or "cpu")

    def _about(self) -> dict:
        parameters = list(self.lm.model.parameters())
        return {
            "name": self.row.name,
            "dtype": str(parameters[0].dtype).removeprefix("torch."),
            "device": str(parameters[0].device),
            "parameters": sum(p.numel() for p in parameters),
        }

    def _done(self, record: Record) -> bool:
        asked = all(_key(record, number) in self.out for number in range(len(record.questions)))
        return asked and (f"video/{record.id}" in self.out or self.out.by_key[_key(record, 0)]["failed"])

    def _open(self, record: Record) -> Any:
        return self.library.open(self.lm, self.sight, record, self.task.path(record))

    def _answer(self, records: list[Record]) -> None:
        opened = []
        for record in records:
            try:
                opened.append((record, self._open(record)))
            except ValueError as error:
                self._fail(record, error)
        if not opened:
            return
        try:
            batch = [(video, question.question) for record, video in opened for question in record.questions]
            answers = iter(self.lm.answer(batch, max_new_tokens=self.config.max_new_tokens))
        except ValueError as error:
            if len(opened) == 1:
                self._fail(opened[0][0], error)
            else:  # find out which
                for record, _ in opened:
                    self._answer([record])
            return
        for record, _ in opened:
            self._write(record, [next(answers) for _ in record.questions])

    def _write(self, record: Record, answers: list[Answer]) -> None:
        first = answers[0]
        sizes = {"tokens": first.tokens, "segment_tokens": first.segment_tokens}
        truth = {"densities": _densities(record), "targets": [segment.caption for segment in record.segments]}
        video = {"type": "video", "key": f"video/{record.id}", "video": record.id, **sizes, **truth}
        lines = [{**video, "captions": first.captions, "cue_recall": _recall(record, first.captions)}]
        for line, answer in zip(_questions(record), answers, strict=True):
            right = self.task.correct(line["expected"], answer.text)
            found = {"answer": answer.text, "correct": right, "failed": False, "reason": None, "tokens": answer.tokens}
            held = {"kv_bytes": answer.kv_bytes, "kv_text_bytes": answer.kv_text_bytes}
            lines.append({**line, **found, **held, "flops": answer.flops})
        self.out.append(lines)

    def _fail(self, record: Record, error: ValueError) -> None:
        logger.warning("%s: %s failed: %s", self.row.name, record.id, error)
        found = {"answer": None, "correct": False, "failed": True, "reason": str(error), "tokens": None, "flops": None}
        self.out.append({**line, **found} for line in _questions(record))

    def _time(self, records: list[Record]) -> None:
        """Ask each of the first videos its first question alone. The warm-up is repeated when a run goes on."""
        warmup, most = self.config.warmup_videos, self.config.timing_videos
        if not most:
            return
        readable = [record for record in records if f"video/{record.id}" in self.out][: warmup + most]
        if all(f"timing/{record.id}" in self.out for record in readable):
            return
        for number, record in enumerate(readable):
            answer = self._open(record).ask(record.questions[0].question, max_new_tokens=self.config.max_new_tokens)
            about = {"type": "timing", "key": f"timing/{record.id}", "video": record.id, "warm": number >= warmup}
            self.out.append([{**about, "seconds": answer.seconds, "peak_bytes": answer.peak_bytes}])


def _chunks(records: Sequence[Record], size: int) -> Iterator[list[Record]]:
    for first in range(0, len(records), size):
        yield list(records[first : first + size])


def _key(record: Record, number: int) -> str:
    return f"{record.id}/{number}"


def _cues(part: SegmentRecord) -> Cues:
    return Cues(tuple(part.subjects), tuple(part.attributes), tuple(part.actions), tuple(part.background))


def _densities(record: Record) -> list[int]:
    return [part.density if part.density is not None else _cues(part).density for part in record.segments]


def _recall(record: Record, captions: list[str] | None) -> list[float | None] | None:
    """The share of each segment's cues that its caption mentions; None where the record names no cues."""
    if captions is None or len(captions) != len(record.segments):
        return None
    cues = [_cues(part) for part in record.segments]
    return [cue_recall(said, wanted) if wanted.all() else None for said, wanted in zip(captions, cues, strict=True)]


def _questions(record: Record) -> list[dict]:
    return [
        {
            "type": "answer",
            "key": _key(record, number),
            "video": record.id,
            "number": number,
            "kind": question.kind,
            "question": question.question,
            "expected": question.answer,
        }
        for number, question in enumerate(record.questions)
    ]
