"""Whether a run reproduces what is published: the uncompressed model's score first, then the others mean something.

All is read from the files of a run, so a judgement changes with its settings and no question is asked again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from langdc.evaluation.settings import EvalConfig
from langdc.evaluation.tasks import Task
from langdc.registry import nearest

MISSED, NOT_YET = "uncalibrated", "not calibrated yet"
ROUNDED = 1e-9
"""Points by which a miss may be a matter of how numbers are kept."""


@dataclass(frozen=True)
class Gate:
    """A published score in percent, and what came out here: `measured` of `n` questions, None while it is unknown.

    `why` says what it is unknown for.
    """

    row: str
    score: float
    tolerance: float
    source: str
    part: str
    measured: float | None
    n: int
    why: str = ""

    @property
    def mark(self) -> str:
        """What the rows after it are called: nothing where the score is met."""
        if self.measured is None:
            return NOT_YET
        return "" if abs(self.measured - self.score) <= self.tolerance + ROUNDED else MISSED

    @property
    def told(self) -> str:
        """Measured, published and tolerance in one sentence."""
        published = f"published {self.score:g} ± {self.tolerance:g} ({self.source}{self.part})"
        if self.measured is None:
            return f"{self.row}: {published}, {self.why}"
        return f"{self.row}: measured {self.measured:.1f} at n = {self.n} questions, {published}"


def gates(
    published: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    header: Mapping[str, Any],
    measured: Mapping[str, Sequence[tuple[Mapping, float]] | None],
) -> list[Gate]:
    """The published scores of a run against what it measured, in the order of its rows, `names`.

    `measured`: by row that was begun, its answers with what each is worth, 0 to 1; None while some are to come. Kinds
    of question weigh as the run's `header` says of its headline accuracy.
    """
    wanted = {settings["row"]: settings for settings in published}
    return [_gate(wanted[name], header, measured.get(name), name in measured) for name in names if name in wanted]


def _gate(
    settings: Mapping[str, Any],
    header: Mapping[str, Any],
    answers: Sequence[tuple[Mapping, float]] | None,
    begun: bool,
) -> Gate:
    parts = [*(settings["kinds"] or ()), *(f"{name} {value}" for name, value in settings["labels"].items())]
    same = {name: settings[name] for name in ("row", "score", "tolerance", "source")}
    same["part"] = f"; of {', '.join(parts)}" if parts else ""
    if answers is None:
        why = "but its row is not finished, or not judged" if begun else "but its row is not asked yet"
        return Gate(**same, measured=None, n=0, why=why)
    worth: dict[str, list[float]] = {}
    for line, score in answers:
        if _belongs(settings, header["target_kinds"], line["kind"], line.get("labels") or {}):
            worth.setdefault(line["kind"], []).append(score)
    if not worth:
        return Gate(**same, measured=None, n=0, why="but no such question was asked")
    weights = header.get("kind_weights") or {kind: len(scores) for kind, scores in worth.items()}
    measured = 100 * fmean(map(fmean, worth.values()), [weights[kind] for kind in worth])
    return Gate(**same, measured=measured, n=sum(map(len, worth.values())))


def _belongs(settings: Mapping[str, Any], target: Sequence[str], kind: str, labels: Mapping[str, str]) -> bool:
    wanted = settings["labels"]
    return kind in (settings["kinds"] or target) and all(labels.get(name) == wanted[name] for name in wanted)


def gate_of(found: Sequence[Gate], rows: Sequence[Mapping[str, Any]]) -> dict[str, Gate]:
    """By row the published score that speaks for it. `rows`: the settings of all of a run's, in order.

    That is the last one at or before it, or else the first; one of its own model if there is any. That another model
    meets its score says nothing of a row; that it misses it does.
    """
    order = {row["name"]: place for place, row in enumerate(rows)}
    model = {row["name"]: (row["model"], repr(row.get("backbone"))) for row in rows}
    speaking = {}
    for name, place in order.items():
        own = [gate for gate in found if model[gate.row] == model[name]]
        among = own or found
        before = [gate for gate in among if order[gate.row] <= place]
        gate = (before[-1:] or among[:1] or [None])[0]
        if gate is not None and (own or gate.mark):
            speaking[name] = gate
    return speaking


def check_published(config: EvalConfig, task: Task) -> None:
    """ValueError if a published score is of a part of the questions that the task does not have."""
    asked = [question for record in task.records for question in record.questions]
    for published in config.published:
        unknown = [kind for kind in published.kinds or () if kind not in {question.kind for question in asked}]
        if unknown:
            hint = nearest(unknown[0], {question.kind for question in asked})
            raise ValueError(f"published: the task has no questions of kind {unknown[0]!r}.{hint}")
        settings = published.model_dump()
        if not any(_belongs(settings, task.target_kinds, question.kind, question.labels) for question in asked):
            raise ValueError(
                f"published: no question of the task has the labels {published.labels}; those of the first are "
                f"{asked[0].labels}. Correct or leave out labels."
            )
