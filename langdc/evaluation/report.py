"""The rows of runs as tables: for the terminal, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langdc.evaluation.notes import lacking, notes
from langdc.evaluation.rows import Row
from langdc.evaluation.statistics import Estimate

CITED = 12  # digits of a hash: enough to tell any two apart, and short enough to print
APART = (
    "Not at an equal budget: what these rows took is more than 2 % from the row they should match, as the column "
    "budget says, so do not compare their accuracy with rows above."
)


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"


def quantity(value: float | None) -> str:
    """A large number in three digits: 1.23 M, 45.6 G."""
    if value is None or value != value:
        return "-"
    for unit in ("", " k", " M", " G", " T", " P"):
        if abs(value) < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} E"


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the number it is sorted by."""

    text: str
    value: float | str | None = None


def cells(row: Row) -> dict[str, Cell]:
    """A row of the table, by column title."""
    accuracy, tokens, kinds = row.accuracy, row.tokens, row.kinds
    first = row.seconds.get("first_token")
    rho = row.density_correlation
    held = row.kv_bytes
    return {
        "row": Cell(_titled(row), row.name),
        "accuracy %": Cell("-" if accuracy is None else _percent(accuracy.value), accuracy and accuracy.value),
        "95 % interval": Cell(_interval(accuracy), accuracy and accuracy.low),
        "judged %": Cell(*_judged(row)),
        "judge's score": Cell(
            "-" if row.judged_score != row.judged_score else f"{row.judged_score:.2f}", row.judged_score
        ),
        "tokens/video": Cell("-" if tokens is None else f"{tokens.value:.1f}", tokens and tokens.value),
        "KV bytes": Cell(quantity(held), _known(held)),
        "budget": Cell(*_budget(row)),
        "first token ms": Cell("-" if first is None else f"{1000 * first:.1f}", first),
        "FLOPs/question": Cell(quantity(row.flops.get("total")), row.flops.get("total")),
        "against reference": Cell(*_difference(row)),
        "videos to see 1 point": Cell(*_power(row)),
        **{kind: Cell(_percent(share.value), share.value) for kind, share in kinds.items()},
        "exact captions %": Cell(_percent(row.exact_captions.value), _known(row.exact_captions.value)),
        "cue recall %": Cell(_percent(row.cue_recall), _known(row.cue_recall)),
        "density rho": Cell("-" if rho != rho else f"{rho:.3f}", _known(rho)),
        "failed": Cell(str(row.failed), row.failed),
        "unparsed": Cell(str(len(row.unparsed)), len(row.unparsed)),
        **{
            f"train {name}": Cell(_trained(row, name), row.training.get(name)) for name in ("samples", "steps", "flops")
        },
    }


def _titled(row: Row) -> str:
    limit = row.settings.get("limit")
    remarks = [f"first {limit} videos" if limit else "", "" if row.finished else "unfinished", marked(row)]
    return row.name + "".join(f" ({remark})" for remark in remarks if remark)


def marked(row: Row) -> str:
    """The mark of a row that is not itself the one with the published score."""
    return row.mark if row.gate is not None and row.settings["name"] != row.gate.row else ""


def _judged(row: Row) -> tuple[str, float | None]:
    if row.verdicts is None:
        return "-", None
    found = row.judged_accuracy
    if found is None:
        return "not judged", None
    waiting = f", {row.unjudged} not judged" if row.unjudged else ""
    return f"{_percent(found.value)} ({_interval(found)}{waiting})", found.value


def _budget(row: Row) -> tuple[str, float | None]:
    if row.budget is None or row.budget["ratio"] is None:
        return "-", None
    what = "" if row.budget["measure"] == "tokens" else " (KV)"
    return f"{row.budget['ratio']:.3f} of {row.budget['match']}{what}", row.budget["ratio"]


def _known(value: float) -> float | None:
    return None if value != value else value


def _interval(found: Estimate | None) -> str:
    return "-" if found is None else f"{_percent(found.low)} to {_percent(found.high)}"


def _difference(row: Row) -> tuple[str, float | None]:
    found = row.difference
    if found is None:
        return "-", None
    low, value, high = (f"{100 * part:+.1f}" for part in (found.low, found.value, found.high))
    return f"{value} ({low} to {high}): {found.verdict}", found.value


def _power(row: Row) -> tuple[str, float | None]:
    needed = row.difference and row.difference.needed
    return (f"{needed:,}".replace(",", " "), needed) if needed else ("-", None)


def _trained(row: Row, name: str) -> str:
    known = quantity(row.training.get(name))
    return known if row.training.get("complete", True) else f"≥ {known}"


def chance_cells(row: Row) -> dict[str, Cell]:
    """The line of the table that says what the most frequent answers would reach."""
    kinds = {kind: Cell(_percent(value), value) for kind, value in row.chance.items()}
    return {"row": Cell("majority answer"), "accuracy %": Cell(_percent(row.target_chance), row.target_chance), **kinds}


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[Cell]]]:
    """Column titles and lines, the last of which is chance; a column in which no row has anything is left out."""
    lines = [cells(row) for row in rows]
    longest = max(rows, key=lambda row: len(row.kinds))
    titles = list(dict.fromkeys(title for line in [cells(longest), *lines] for title in line))
    kept = [title for title in titles if any(line.get(title, Cell("-")).text != "-" for line in lines)]
    return kept, [[line.get(title, Cell("-")) for title in kept] for line in [*lines, chance_cells(longest)]]


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows that may be compared, and those whose budget could not be matched."""
    return [row for row in rows if not row.apart], [row for row in rows if row.apart]


def as_markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown; rows that could not be matched have one of their own below, then what is to be said."""
    equal, apart = split(rows)
    parts = [_markdown(equal)] if equal else []
    parts += [f"{APART}\n\n{_markdown(apart)}"] if apart else []
    return "\n".join([*parts, *(f"{note}\n" for note in notes(rows))])


def _markdown(rows: Sequence[Row]) -> str:
    titles, lines = table(rows)
    body = ["| " + " | ".join(cell.text for cell in line) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles), *body]) + "\n"


def citation(row: Row) -> str:
    """One line that says where a row's figure is from: command, commit and the beginnings of the hashes."""
    accuracy, session = row.accuracy, row.header["sessions"][-1]
    figure = "no answers yet"
    if accuracy is not None:
        asked = f"{accuracy.n} questions about {accuracy.clusters} videos"
        figure = f"{_percent(accuracy.value)} % (95 % interval {_interval(accuracy)}) of {asked}"
    hashes = ", ".join(f"{name} {found[:CITED]}" for name, found in row.hashes.items())
    made = f"LangDC {session['version']}, commit {' and '.join(row.commits)}, sha256 of {hashes}"
    task = row.header["config"]["task"]["name"]
    return f"{row.name} on {task}: {figure}. {_checked(row)}{made}. Command: {session['command']}"


def _checked(row: Row) -> str:
    if row.gate is None:
        return ""
    return f"{(row.gate.mark or 'calibrated').capitalize()}: {row.gate.told}. "


def as_csv(rows: Sequence[Row]) -> str:
    """The table with full numbers, interval bounds and verdicts in columns of their own."""
    records: list[dict[str, Any]] = []
    missing = "; ".join(lacking(rows))
    for row in rows:
        accuracy, tokens, difference = row.accuracy, row.tokens, row.difference
        record: dict[str, Any] = {"row": row.name, "finished": row.finished, "failed": row.failed}
        record |= {"unparsed": len(row.unparsed)}
        record |= _flat("accuracy", accuracy, "value", "low", "high", "error", "n", "clusters")
        record |= {"chance": row.target_chance, "calibration": "no published score", "controls_missing": missing}
        if row.gate is not None:
            names = ("row", "score", "tolerance", "measured", "n", "source")
            record |= {"calibration": row.mark or "calibrated"} | _flat("published", row.gate, *names)
        if row.verdicts is not None:
            record |= _flat("judged", row.judged_accuracy, "value", "low", "high") | {"judge_score": row.judged_score}
            record |= {"not_judged": row.unjudged, "judge": row.header["judge"]["model"]}
        record |= {f"accuracy_{kind}": share.value for kind, share in row.kinds.items()}
        record |= {f"n_{kind}": share.n for kind, share in row.kinds.items()}
        record |= _flat("tokens", tokens, "value", "low", "high")
        record |= {"kv_bytes": row.kv_bytes, "peak_bytes": row.peak_bytes}
        record |= {f"budget_{name}": (row.budget or {}).get(name) for name in ("match", "measure", "ratio", "equal")}
        record |= _flat("difference", difference, "value", "low", "high", "p", "corrected", "needed", "verdict")
        for stage, found in row.stages.items():
            record |= {f"seconds_{stage}": found.median, f"seconds_{stage}_p95": found.p95, "timed_videos": found.n}
        record |= {"tokens_per_second": row.tokens_per_second}
        record |= {f"flops_{part}": flops for part, flops in row.flops.items()}
        record |= {"density_correlation": row.density_correlation, "captions_exact": row.exact_captions.value}
        record |= {"captions": row.exact_captions.n, "cue_recall": row.cue_recall}
        record |= {f"train_{name}": row.training.get(name) for name in ("samples", "steps", "flops", "seconds")}
        record |= {"commit": " ".join(row.commits), **{f"{name}_sha256": found for name, found in row.hashes.items()}}
        records.append(record)
    text = io.StringIO()
    titles = list(dict.fromkeys(title for record in records for title in record))
    writer = csv.DictWriter(text, titles, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _flat(prefix: str, found: Any, *names: str) -> dict[str, Any]:
    return {f"{prefix}_{name}": getattr(found, name) for name in names} if found is not None else {}
