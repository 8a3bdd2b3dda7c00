"""Whether an evaluation reproduces published scores of uncompressed models, as its files and settings say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from langdc.evaluate.settings import EvalConfig
from langdc.evaluate.tasks import Task
from langdc.registry import nearest

MISSED, PENDING = "uncalibrated", "not calibrated yet"
ROUNDING = 1e-9
"""Points of difference that come from floating point alone."""


_Scored = Sequence[tuple[Mapping[str, Any], float]]
"""Answers with their scores."""


@dataclass(frozen=True)
class ReproductionCheck:
    """A published score in percent, and what was `measured` here over `n` questions, None while that is unknown.

    `part`: which questions it is of, if not all; `why` it is unknown.
    """

    entry: str
    score: float
    tolerance: float
    source: str
    part: str
    measured: float | None
    n: int
    why: str = ""

    @property
    def flag(self) -> str:
        """What later entries are called: nothing where the score is reproduced."""
        if self.measured is None:
            return PENDING
        return "" if abs(self.measured - self.score) <= self.tolerance + ROUNDING else MISSED

    @property
    def summary(self) -> str:
        """Measured, published and tolerance in one sentence."""
        published = f"published {self.score:g} ± {self.tolerance:g} ({self.source}{self.part})"
        if self.measured is None:
            return f"{self.entry}: {published}, {self.why}"
        return f"{self.entry}: measured {self.measured:.1f} at n = {self.n} questions, {published}"

    @classmethod
    def by_entry(
        cls, header: Mapping[str, Any], scores: Mapping[str, _Scored | None]
    ) -> "dict[str, ReproductionCheck]":
        """Map each entry to the published score it is checked against.

        `scores`: by entry that was begun, its answers with their scores from 0 to 1; None while some are to come. An
        entry is checked against the last score at or before it, or else the first; against one of its own model if
        there is any. That another model reproduces its score says nothing about an entry; that it misses it does.
        """
        entries = header["entries"]
        published = {settings["entry"]: settings for settings in header.get("published") or ()}
        order = {entry["name"]: place for place, entry in enumerate(entries)}
        model = {entry["name"]: (entry["model"], repr(entry.get("backbone"))) for entry in entries}
        checks = [
            cls._of(published[name], header, scores.get(name), name in scores) for name in order if name in published
        ]
        found = {}
        for name, place in order.items():
            own = [check for check in checks if model[check.entry] == model[name]]
            among = own or checks
            before = [check for check in among if order[check.entry] <= place]
            check = (before[-1:] or among[:1] or [None])[0]
            if check is not None and (own or check.flag):
                found[name] = check
        return found

    @classmethod
    def _of(
        cls, settings: Mapping[str, Any], header: Mapping[str, Any], answers: _Scored | None, begun: bool
    ) -> "ReproductionCheck":
        parts = [*(settings["kinds"] or ()), *(f"{name} {value}" for name, value in settings["labels"].items())]
        same = {name: settings[name] for name in ("entry", "score", "tolerance", "source")}
        same["part"] = f"; of {', '.join(parts)}" if parts else ""
        by_kind: dict[str, list[float]] = {}
        for line, score in answers or ():
            if _belongs(settings, header["target_kinds"], line["kind"], line.get("labels") or {}):
                by_kind.setdefault(line["kind"], []).append(score)
        if not by_kind:
            why = "but no such question was asked"
            if answers is None:
                why = "but its entry is not finished, or not judged" if begun else "but its entry is not asked yet"
            return cls(**same, measured=None, n=0, why=why)
        weights = header.get("kind_weights") or {kind: len(scores) for kind, scores in by_kind.items()}
        measured = 100 * fmean(map(fmean, by_kind.values()), [weights[kind] for kind in by_kind])
        return cls(**same, measured=measured, n=sum(map(len, by_kind.values())))


def _belongs(settings: Mapping[str, Any], target: Sequence[str], kind: str, labels: Mapping[str, str]) -> bool:
    return kind in (settings["kinds"] or target) and settings["labels"].items() <= labels.items()


def check_published(config: EvalConfig, task: Task) -> None:
    """ValueError if a published score is of a part of the questions that the task does not have."""
    asked = [question for record in task.records for question in record.questions]
    kinds = {question.kind for question in asked}
    for published in config.published:
        if unknown := [kind for kind in published.kinds or () if kind not in kinds]:
            raise ValueError(
                f"published: the task has no questions of kind {unknown[0]!r}.{nearest(unknown[0], kinds)}"
            )
        settings = published.model_dump()
        if not any(_belongs(settings, task.target_kinds, question.kind, question.labels) for question in asked):
            raise ValueError(
                f"published: no question of the task has the labels {published.labels}; those of the first are "
                f"{asked[0].labels}. Correct or leave out labels."
            )
