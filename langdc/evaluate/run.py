"""One entry of an evaluation at work: its model answers, and each answer is written down at once."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from langdc.data.records import QuestionRecord, Record
from langdc.density import cue_recall, densities
from langdc.evaluate import controls, matching
from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.settings import BUDGET, EntryConfig, EvalConfig
from langdc.evaluate.tasks import Task
from langdc.evaluate.videos import CalibrationSet, VideoCache
from langdc.hashing import content_hash, json_hash
from langdc.log import get_logger
from langdc.pipeline import VideoLM
from langdc.types import Answer

logger = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Session:
    """What the entries of one start share."""

    config: EvalConfig
    task: Task
    folder: EvalFolder
    cache: VideoCache
    calibration: CalibrationSet


class Run:
    """An entry of a session, from its model to its lines.

    `matched`: the lines of the entry that this one copies or matches; `records`: the videos it is asked about.
    """

    def __init__(self, session: Session, entry: EntryConfig) -> None:
        self.entry, self.config, self.task = entry, session.config, session.task
        self.cache, self.calibration = session.cache, session.calibration
        self.out = session.folder.entry_file(entry.name)
        self.matched = session.folder.lines(entry.match) if entry.match else []
        limits = [limit for limit in (self.config.limit, entry.limit) if limit is not None]
        self.records = self.task.records[: min(limits, default=None)]
        self._ids = {record.id for record in self.records}
        self.lm: Any = None
        self.preprocessing, self.need = "", frozenset[str]()

    # ---- before the questions

    def calibrate(self, lm: VideoLM, key: str) -> None:
        """Set the budget to what the matched entry took for the videos of this one, unless that was done before."""
        if not self.entry.calibrated or "calibration" in self.out:
            return
        lines = [line for line in self.matched if line.get("video") in self._ids]
        took = _spent(lines, self.entry.measure, text=False)
        if not took:
            raise ValueError(
                f"Entry {self.entry.name!r} matches what {self.entry.match!r} took, and that entry has no figure of it "
                "for these videos. Look at its failures."
            )
        models = {entry.name: entry.model_key for entry in self.config.all_entries}
        before = [line["tokens_before"] for line in lines if line["key"] in took and line.get("tokens_before")]
        before = before if models[self.entry.match or ""] == self.entry.model_key else []  # in another they have others
        with_parts = matching.with_parts(lm, self.entry, {"tokens": 1})
        videos = self.calibration.open(with_parts, self._preprocessing(with_parts, key))
        try:
            target, batch = fmean(took.values()), self.config.batch_size
            found = matching.calibrate(lm, self.entry, target, videos, batch, fmean(before) if before else None)
        except ValueError as error:
            what = f"Entry {self.entry.name!r} cannot be given the budget of {self.entry.match!r}"
            raise ValueError(f"{what}: {error}") from error
        self.out.append([{"type": "calibration", "key": "calibration", **found}])

    def set_model(self, lm: VideoLM, key: str, need: frozenset[str]) -> None:
        """Put the entry's compressors on a bare model.
        `key`: hash of its preprocessing; `need`: what all entries of this model need of a video.
        """
        if self.entry.control is not None:
            counts = {line["video"]: line["tokens"] for line in self.matched if line["type"] == "video"}
            own, name_of = lm.model.compressor, self.cache.names.__getitem__
            control = controls.build(self.entry.control, own, lm.model.backbone, counts, name_of, self.config.seed)
            self.lm = type(lm)(lm.model, control)
        else:
            found = self.out.by_key["calibration"] if self.entry.calibrated else {}
            self.lm = matching.with_parts(lm, self.entry, {name: found[name] for name in BUDGET & {*found}})
        self.lm.compressor.to(lm.device)
        self.preprocessing, self.need = self._preprocessing(self.lm, key), need

    def _preprocessing(self, lm: VideoLM, key: str) -> str:
        """`key` with what else decides which frames are read."""
        return f"{key} {json_hash(self.entry.model_dump(mode='json')['frames'])[:16]}" if lm.chooses else key

    def describe_model(self) -> None:
        """Write down what the entry runs."""
        weights = list(self.lm.model.parameters())
        dtype, device = str(weights[0].dtype).removeprefix("torch."), str(weights[0].device)
        about = {
            "name": self.entry.name,
            "dtype": dtype,
            "device": device,
            "parameters": sum(p.numel() for p in weights),
        }
        self.out.append([{"type": "model", "key": "model", **about}])

    # ---- questions

    def is_pending(self, record: Record) -> bool:
        """Whether a video has questions that this entry has not been asked."""
        if record.id not in self._ids:
            return False
        asked = all(_key(record, index) in self.out for index in range(len(record.questions)))
        return not asked or not (f"video/{record.id}" in self.out or self.out.by_key[_key(record, 0)]["failed"])

    def answer(self, records: Sequence[Record]) -> None:
        """Ask all questions about some videos, in one batch; one by one where the batch fails."""
        opened, asked = [], []
        for record in records:
            try:
                own = record.questions if self.lm.chooses else record.questions[:1]  # else opened for all at once
                videos = [self._open(record, question) for question in own]
            except ValueError as error:
                self._fail(record, error)
                continue
            opened.append(record)
            asked += zip(cycle(videos), record.questions, strict=False)
        if not opened:
            return
        try:
            batch = [(video, self.task.prompt(question)) for video, question in asked]
            answers = iter(self.lm.answer(batch, max_new_tokens=self.config.max_new_tokens))
        except ValueError as error:
            if len(opened) == 1:
                self._fail(opened[0], error)
            else:
                for record in opened:
                    self.answer([record])
            return
        for record in opened:
            self._write(record, [next(answers) for _ in record.questions])

    def _open(self, record: Record, asked: QuestionRecord) -> Any:
        path = self.task.path(record)
        return self.cache.open(self.lm, self.preprocessing, record, path, self.need, asked.question)

    def _write(self, record: Record, answers: list[Answer]) -> None:
        first, segments = answers[0], record.segments
        recall = None  # the share of each segment's cues that its caption mentions
        if first.captions is not None and len(first.captions) == len(segments):
            recall = [cue_recall(*pair) for pair in zip(first.captions, segments, strict=True)]
        per_segment = [answer.segment_tokens for answer in answers]
        video = {
            "type": "video",
            "key": f"video/{record.id}",
            "video": record.id,
            **self._file(record),
            "content": content_hash(path) if (path := self.task.path(record)).exists() else None,
            # of a compressor that reads the question, the mean over the questions
            "tokens": _mean([answer.tokens for answer in answers]),
            "segment_tokens": [_mean(each) for each in zip(*per_segment, strict=not self.lm.chooses)],
            "densities": [] if self.lm.chooses else densities(segments),  # chosen frames have segments of their own
            "targets": [segment.caption for segment in segments],
            **self.cache.richness_of(self.preprocessing, record),
            "captions": first.captions,
            "cue_recall": recall,
        }
        lines = [video]
        for line, question, answer in zip(self._questions(record), record.questions, answers, strict=True):
            parsed = self.task.parse(question, answer.text)
            score = None  # where there is no answer, or the judge scores the reply
            if question.answered and not self.task.judged(question):
                score = 0.0 if parsed is None else self.task.score(question, parsed)
            verdict = {"parsed": parsed, "score": score, "correct": score == 1, "failed": False, "reason": None}
            counts = {"tokens": answer.tokens, "tokens_before": answer.tokens_before}
            held = {"kv_bytes": answer.kv_bytes, "kv_text_bytes": answer.kv_text_bytes, "flops": answer.flops}
            lines.append({**line, "answer": answer.text, **verdict, **counts, **held})
        self.out.append(lines)

    def _fail(self, record: Record, error: ValueError) -> None:
        logger.warning("%s: %s failed: %s", self.entry.name, record.id, error)
        verdict = {"parsed": None, "correct": False, "failed": True, "reason": str(error)}
        found = {"answer": None, **verdict, "tokens": None, "flops": None}
        worth = [0.0 if question.answered else None for question in record.questions]
        lines = zip(self._questions(record), worth, strict=True)
        self.out.append({**line, **found, "score": score} for line, score in lines)

    # ---- after the questions

    def time(self, records: Sequence[Record]) -> Iterator[None]:
        """Time the first question about each of the first videos, asked alone; yields, so that entries take turns."""
        warmup, timed = self.config.warmup_videos, self.config.timing_videos
        readable = [record for record in records if f"video/{record.id}" in self.out][: warmup + timed]
        if not timed or all(f"timing/{record.id}" in self.out for record in readable):
            return
        for index, record in enumerate(readable):
            question = self.task.prompt(record.questions[0])
            try:
                video = self._open(record, record.questions[0])
                answer = video.ask(question, max_new_tokens=self.config.max_new_tokens)
            except ValueError as error:  # its file has gone since it was answered
                logger.warning("%s: %s is not timed: %s", self.entry.name, record.id, error)
                continue
            about = {"type": "timing", "key": f"timing/{record.id}", "video": record.id, "warm": index >= warmup}
            found = {"seconds": answer.seconds, "peak_bytes": answer.peak_bytes, "reply_tokens": answer.reply_tokens}
            self.out.append([{**about, **found}])
            yield

    def finish(self) -> None:
        """Write down how near the budget came to the matched entry's, and that all is done."""
        self.out.reread()
        if self.entry.match is not None:
            measure = self.entry.measure
            found = matching.compared(*(_spent(lines, measure) for lines in (self.out.lines, self.matched)))
            about = {"type": "budget", "key": "budget", "match": self.entry.match, "measure": measure}
            self.out.append([{**about, **found}])
            if not found["equal"]:
                logger.warning("%s: no equal budget with %s: %s.", self.entry.name, self.entry.match, found)
        answers = [line for line in self.out.lines if line["type"] == "answer"]
        failed, right = (sum(line[name] for line in answers) for name in ("failed", "correct"))
        scored = sum(line["score"] is not None for line in answers)
        self.out.append([{"type": "finished", "key": "finished", "answers": len(answers), "failed": failed}])
        logger.info("%s: %d of %d answers right, %d failed.", self.entry.name, right, scored, failed)

    def _questions(self, record: Record) -> Iterator[dict[str, Any]]:
        """The beginnings of a record's answer lines."""
        file = self._file(record)
        for index, question in enumerate(record.questions):
            about = {"type": "answer", "key": _key(record, index), "video": record.id, **file, "number": index}
            labels = {"labels": question.labels} if question.labels else {}
            judged = {} if (found := self.task.judged(question)) is None else {"judged": found}
            said = {"kind": question.kind, **labels, **judged, "question": question.question}
            yield {**about, **said, "expected": question.answer}

    def _file(self, record: Record) -> dict[str, str]:
        """The file of a record as "file", from the task's folder, so that an evaluation may be moved with its data:
        records of one file, whole or in clips, are no independent videos.
        """
        try:
            return {"file": os.path.relpath(self.task.path(record).resolve(), (self.task.root or Path()).resolve())}
        except ValueError:  # it cannot be read, or lies outside
            return {}


def _key(record: Record, index: int) -> str:
    return f"{record.id}/{index}"


def _mean(counts: Sequence[int]) -> float:
    return counts[0] if len(set(counts)) == 1 else sum(counts) / len(counts)


def _spent(lines: Sequence[Mapping[str, Any]], measure: str, text: bool = True) -> dict[str, float]:
    """What videos ("tokens") or questions ("kv_bytes", with or without `text`) took, by key; failed ones left out."""
    if measure == "tokens":
        return {line["key"]: line["tokens"] for line in lines if line["type"] == "video"}
    answered = [line for line in lines if line["type"] == "answer" and line.get("kv_bytes")]
    return {line["key"]: line["kv_bytes"] - (0 if text else line["kv_text_bytes"]) for line in answered}
