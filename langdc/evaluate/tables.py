"""The results of evaluations as tables: for the terminal, the page, Markdown and CSV."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from langdc.evaluate.notes import missing_controls, notes
from langdc.evaluate.results import Result
from langdc.evaluate.statistics import Difference, Estimate
from langdc.text import csv_cell, markdown

CITED = 12  # digits of a hash: enough to tell any two apart
MISMATCH = (
    "Not at an equal budget: what these entries took is more than 2 % from the entry they should match, as the column "
    "budget says, so do not compare their accuracy with entries above."
)
OVER_SEEDS = (
    "A line is an entry with those that repeat it with other seeds; its figures are means over these runs. The "
    "interval of a difference resamples videos and takes the runs as given; the lowest and the highest run show how "
    "much the accuracy depends on the seed. Verdicts follow p values after Holm's correction over this table."
)


@dataclass(frozen=True)
class _Cell:
    """What a table shows, and the number or text it is sorted by."""

    text: str = "-"
    value: float | str | None = None


def _cell(value: float | None, form: str = "{}", scale: float = 1.0) -> _Cell:
    """A number in a form; a dash for none and NaN."""
    return _Cell() if value is None or value != value else _Cell(form.format(scale * value), value)


def _percent(value: float | None) -> _Cell:
    return _cell(value, "{:.1f}", 100)


def quantity(value: float | None) -> str:
    """A large number in three digits: 1.23 M, 45.6 G."""
    if value is None or value != value:
        return "-"
    for unit in ("", " k", " M", " G", " T", " P"):
        if abs(value) < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} E"


def _large(value: float | None) -> _Cell:
    return _Cell(quantity(value), None if value != value else value)


def _interval(found: Estimate | None) -> str:
    return "-" if found is None else f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def _judged(result: Result) -> _Cell:
    if result.verdicts is None:
        return _Cell()
    found = result.judged[0]
    if found is None:
        return _Cell("not judged")
    waiting = f", {result.unjudged} not judged" if result.unjudged else ""
    return _Cell(f"{100 * found.value:.1f} ({_interval(found)}{waiting})", found.value)


def _budget(result: Result) -> _Cell:
    if result.budget is None or result.budget["ratio"] is None:
        return _Cell()
    what = "" if result.budget["measure"] == "tokens" else " (KV)"
    return _Cell(f"{result.budget['ratio']:.3f} of {result.budget['match']}{what}", result.budget["ratio"])


def _difference(found: Difference | None) -> _Cell:
    if found is None:
        return _Cell()
    low, value, high = (f"{100 * part:+.1f}" for part in (found.low, found.value, found.high))
    return _Cell(f"{value} ({low} to {high}): {found.verdict}", found.value)


def _trained(value: float | None, *runs: Result) -> _Cell:
    found = _large(value)
    complete = all(run.training.get("complete", True) for run in runs)
    return found if complete else _Cell(f"≥ {found.text}", found.value)


def _remarks(result: Result) -> list[str]:
    """What its name is marked with in a table; "" for nothing."""
    limit = result.settings.get("limit")
    above = "above its budget" if result.above_budget else ""
    return [f"first {limit} videos" if limit else "", "" if result.finished else "unfinished", above, result.shown_flag]


def _entry(result: Result, remarks: Sequence[str]) -> _Cell:
    return _Cell(result.name + "".join(f" ({remark})" for remark in dict.fromkeys(remarks) if remark), result.name)


def _over_seeds(runs: Sequence[Result]) -> dict[str, float]:
    """Means over the runs of a method, NaN where one has no figure; and the lowest and the highest accuracy."""
    figures = [
        {
            "accuracy": run.accuracy and run.accuracy.value,
            **{f"group {name}": share and share.value for name, (share, _) in run.groups.items()},
            "tokens": run.tokens and run.tokens.value,
            "train flops": run.training.get("flops"),
        }
        for run in runs
    ]
    table = pd.DataFrame(figures, dtype=float)
    means, low, high = (found.to_dict() for found in (table.mean(skipna=False), table.min(), table.max()))
    return {"runs": len(runs), **means, "lowest": low["accuracy"], "highest": high["accuracy"]}


@dataclass(frozen=True)
class Table:
    """Column titles and lines, and a last line for the majority answers if any; columns without content are left out.

    Titles of kinds of question begin with "kind ", those of their groups with "group ", so that none is taken for
    another column.
    """

    titles: list[str]
    lines: list[list[_Cell]]
    chance: list[_Cell]

    @classmethod
    def of(cls, results: Sequence[Result]) -> "Table":
        """The table of some results."""
        lines = [cls.cells(result) for result in results]
        longest = max(results, key=lambda result: len(result.kinds))
        kinds = {f"kind {kind}": _percent(value) for kind, value in longest.chance.items()}
        kinds |= {f"group {name}": _percent(chance) for name, (_, chance) in longest.groups.items()}
        chance = {"entry": _Cell("majority answer"), "accuracy %": _percent(longest.target_chance), **kinds}
        return cls._of((title for line in [cls.cells(longest), *lines] for title in line), lines, chance)

    @classmethod
    def _of(cls, titles: Iterable[str], lines: Sequence[dict], chance: dict[str, _Cell]) -> "Table":
        kept = [title for title in dict.fromkeys(titles) if any(line.get(title, _Cell()).text != "-" for line in lines)]
        in_order = [[line.get(title, _Cell()) for title in kept] for line in [*lines, chance]]
        return cls(kept, in_order[:-1], in_order[-1] if chance else [])

    @classmethod
    def over_seeds(cls, results: Sequence[Result]) -> "Table | None":
        """The table of methods trained with several seeds, by the entries that others repeat; None without any."""
        lines = [cls._seeds(result) for result in results if result.repeated]
        return cls._of((title for line in lines for title in line), lines, {}) if lines else None

    @staticmethod
    def _seeds(result: Result) -> dict[str, _Cell]:
        found, remarks = _over_seeds(result.runs), [remark for run in result.runs for remark in _remarks(run)]
        low, high = _percent(found["lowest"]), _percent(found["highest"])
        return {
            "entry": _entry(result, [*remarks, *("not at an equal budget" for r in result.runs if r.budget_mismatch)]),
            "runs": _cell(found["runs"], "{:.0f}"),
            "accuracy %": _percent(found["accuracy"]),
            "lowest to highest": low if low.value is None else _Cell(f"{low.text} to {high.text}", low.value),
            **{name: _percent(value) for name, value in found.items() if name.startswith("group ")},
            "tokens/video": _cell(found["tokens"], "{:.1f}"),
            "train flops": _trained(found["train flops"], *result.runs),
            "against reference": _difference(result.over_seeds),
        }

    @classmethod
    def by_budget(cls, results: Sequence[Result]) -> "tuple[Table | None, Table | None]":
        """The tables of the results that may be compared, and of those whose budget could not be matched."""
        parts = [[one for one in results if one.budget_mismatch == mismatch] for mismatch in (False, True)]
        equal, apart = (cls.of(part) if part else None for part in parts)
        return equal, apart

    @staticmethod
    def cells(result: Result) -> dict[str, _Cell]:
        """A line of the table, by column title."""
        accuracy, tokens = result.accuracy, result.tokens
        needed = result.difference and result.difference.needed
        return {
            "entry": _entry(result, _remarks(result)),
            "accuracy %": _percent(accuracy and accuracy.value),
            "95 % interval": _Cell(_interval(accuracy), accuracy and accuracy.low),
            **{f"group {name}": _percent(share and share.value) for name, (share, _) in result.groups.items()},
            "judged %": _judged(result),
            "judge's score": _cell(result.judged[1], "{:.2f}"),
            "tokens/video": _cell(tokens and tokens.value, "{:.1f}"),
            "KV bytes": _large(result.kv_bytes),
            "budget": _budget(result),
            "first token ms": _cell(result.stages["first_token"].median if result.stages else None, "{:.1f}", 1000),
            "FLOPs/question": _large(result.flops.get("total")),
            "against random": _difference(result.against_random),
            "against reference": _difference(result.difference),
            "videos to see 1 point": _Cell(f"{needed:,}".replace(",", " "), needed) if needed else _Cell(),
            **{f"kind {kind}": _percent(share.value) for kind, share in result.kinds.items()},
            "exact captions %": _percent(result.exact_captions.value),
            "cue recall %": _percent(result.cue_recall),
            "density rho": _cell(result.density_correlation, "{:.3f}"),
            "failed": _cell(len(result.failures), "{:.0f}"),
            "unparsed": _cell(len(result.unparsed), "{:.0f}"),
            **{f"train {name}": _trained(result.training.get(name), result) for name in ("samples", "steps", "flops")},
        }

    @property
    def headings(self) -> list[str]:
        """The titles as they are shown."""
        return [heading(title).replace("_", " ") for title in self.titles]


def heading(title: str) -> str:
    """A column's title as it is shown."""
    return title.removeprefix("kind ").removeprefix("group ")


def as_markdown(results: Sequence[Result]) -> str:
    """The table in Markdown, then those of entries that could not be matched and of seeds, then the notes."""
    (equal, apart), seeds = Table.by_budget(results), Table.over_seeds(results)
    parts = [_markdown(equal)] if equal else []
    parts += [f"{MISMATCH}\n\n{_markdown(apart)}"] if apart else []
    parts += [f"Over seeds. {OVER_SEEDS}\n\n{_markdown(seeds)}"] if seeds else []
    return "\n".join([*parts, *(f"{markdown(note)}\n" for note in notes(results))])


def _markdown(table: Table) -> str:
    lines = [[markdown(heading(title)) for title in table.titles], ["---"] * len(table.titles)]
    lines += [[markdown(cell.text) for cell in line] for line in [*table.lines, table.chance] if line]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def citation(result: Result) -> str:
    """One line that says where an entry's figure is from: command, commit and the beginnings of the hashes."""
    accuracy, session, check = result.accuracy, result.header["sessions"][-1], result.check
    figure = "no question has an answer to compare with" if result.answers else "no answers yet"
    if accuracy is not None:
        asked = f"{accuracy.n} questions about {accuracy.clusters} videos"
        figure = f"{100 * accuracy.value:.1f} % (95 % interval {_interval(accuracy)}) of {asked}"
    checked = "" if check is None else f"{(check.flag or 'calibrated').capitalize()}: {check.summary}. "
    hashes = ", ".join(f"{name} {found[:CITED]}" for name, found in result.hashes.items())
    made = f"LangDC {session['version']}, commit {' and '.join(result.commits)}, sha256 of {hashes}"
    task = result.header["config"]["task"]["name"]
    return f"{result.name} on {task}: {figure}. {checked}{made}. Command: {session['command']}"


def as_csv(results: Sequence[Result]) -> str:
    """The table with full numbers, interval bounds and verdicts in columns of their own; no text is a formula."""
    records = [_record(result, results) for result in results]
    safe = [{csv_cell(name): csv_cell(value) for name, value in record.items()} for record in records]
    return pd.DataFrame(safe, dtype=object).to_csv(index=False, lineterminator="\n")


def _record(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    found: dict[str, Any] = {"entry": result.name, "finished": result.finished, "failed": len(result.failures)}
    found |= {"unparsed": len(result.unparsed)}
    found |= _fields("accuracy", result.accuracy, "value", "low", "high", "error", "n", "clusters")
    found |= {"chance": result.target_chance, "calibration": "no published score"}
    found |= {"controls_missing": "; ".join(missing_controls(results))}
    if result.check is not None:
        names = ("entry", "score", "tolerance", "measured", "n", "source")
        found |= {"calibration": result.flag or "calibrated"} | _fields("published", result.check, *names)
    if result.verdicts is not None:
        found |= _fields("judged", result.judged[0], "value", "low", "high")
        found |= {"judge_score": result.judged[1], "not_judged": result.unjudged}
        found |= {"judge": result.header["judge"]["model"]}
    for group, (share, chance) in result.groups.items():
        found |= _fields(f"group_{group}", share, "value", "low", "high", "n") | {f"chance_group_{group}": chance}
    found |= {f"kind_{kind}": share.value for kind, share in result.kinds.items()}
    found |= {f"n_kind_{kind}": share.n for kind, share in result.kinds.items()}
    found |= _fields("tokens", result.tokens, "value", "low", "high")
    found |= {"kv_bytes": result.kv_bytes, "peak_bytes": result.peak_bytes}
    found |= {f"budget_{name}": (result.budget or {}).get(name) for name in ("match", "measure", "ratio", "equal")}
    figures = ("value", "low", "high", "p", "corrected", "needed", "verdict")
    found |= _fields("difference", result.difference, *figures)
    found |= _fields("against_random", result.against_random, *figures)
    found |= {"repeats": result.settings.get("repeats")} if len(result.runs) > 1 else {}
    if result.repeated:
        found |= {f"seeds_{name.replace(' ', '_')}": value for name, value in _over_seeds(result.runs).items()}
        found |= _fields("seeds_difference", result.over_seeds, *figures)
    for stage, spread in result.stages.items():
        found |= {f"seconds_{stage}": spread.median, f"seconds_{stage}_p95": spread.p95, "timed_videos": spread.n}
    found |= {"tokens_per_second": result.tokens_per_second}
    found |= {f"flops_{part}": flops for part, flops in result.flops.items()}
    found |= {"density_correlation": result.density_correlation, "captions_exact": result.exact_captions.value}
    found |= {"captions": result.exact_captions.n, "cue_recall": result.cue_recall}
    found |= {f"train_{name}": result.training.get(name) for name in ("samples", "steps", "flops", "seconds")}
    return found | {"commit": " ".join(result.commits), **{f"{n}_sha256": one for n, one in result.hashes.items()}}


def _fields(prefix: str, found: Any, *names: str) -> dict[str, Any]:
    return {f"{prefix}_{name}": getattr(found, name) for name in names} if found is not None else {}
