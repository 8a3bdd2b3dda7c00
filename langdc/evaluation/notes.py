"""What has to be said beside a table: which controls it lacks, whether it reproduces what is published, who judged."""

from collections.abc import Callable, Sequence

from langdc.evaluation.gate import MISSED, NOT_YET, Gate
from langdc.evaluation.rows import Row

UNCOMPRESSED, CAPTIONS = "the uncompressed model", "the decoded captions as text"


def notes(rows: Sequence[Row]) -> list[str]:
    """Sentences for every output."""
    return [note for note in (missing_controls(rows), *calibration(rows), *judges(rows)) if note]


# ---- controls


def _is_random(row: dict) -> bool:
    return _compressor(row) == "random" or (row["control"] or "").startswith("random_tokens")


def _is_fewer_frames(row: dict) -> bool:
    uniform = _compressor(row) == "uniform" and row["compressor"].get("by") != "resolution"
    return uniform or row["control"] == "uniform_frames"


def _is_lower_resolution(row: dict) -> bool:
    return _compressor(row) == "uniform" and row["compressor"].get("by") == "resolution"


AT_A_BUDGET: dict[str, Callable[[dict], bool]] = {
    "random tokens": _is_random,
    "fewer frames": _is_fewer_frames,
    "lower resolution": _is_lower_resolution,
}
"""Controls that need a row at every budget, and how they are known by a row's settings."""


def _compressor(row: dict) -> str | None:
    return (row["compressor"] or {}).get("name")


def _keep(row: dict) -> float | None:
    """The share that a row is told to keep; None where it is not told one."""
    return ((row.get("kv") or {}) or (row["compressor"] or {})).get("keep")


def _own(row: Row) -> str | None:
    """The compressor that a row's model was trained with, None for a stock model."""
    known = row.header.get("own_compressors") or {}
    return known.get(row.settings["name"], "unknown")


def _is_uncompressed(row: Row) -> bool:
    settings = row.settings
    if settings["control"] or settings.get("kv"):
        return False
    return _compressor(settings) == "identity" or (_compressor(settings) is None and _own(row) in (None, "pool"))


def lacking(rows: Sequence[Row]) -> list[str]:
    """The controls that a table lacks, by name; of those that need a row at every budget, at which ones."""
    found = [] if any(map(_is_uncompressed, rows)) else [UNCOMPRESSED]
    settings = [row.settings for row in rows]
    methods = [row for row in settings if not any(known(row) for known in AT_A_BUDGET.values())]
    budgets = sorted({keep for row in methods if (keep := _keep(row)) is not None and keep < 1})
    for name, known in AT_A_BUDGET.items():
        there = [row for row in settings if known(row)]
        at = [keep for keep in budgets if keep not in [_keep(row) for row in there]]
        if not there:
            found.append(name)
        elif at:
            found.append(f"{name} at {', '.join(f'{100 * keep:g} %' for keep in at)}")
    writes = any(_own(row) == "langdc" and not row.settings["control"] for row in rows)
    if writes and not any(row["control"] == "caption_text" for row in settings):
        found.append(CAPTIONS)
    return found


def missing_controls(rows: Sequence[Row]) -> str:
    """That a table lacks controls, and why, if it does."""
    found = lacking(rows)
    if not found:
        return ""
    shown = {id(row.header): row.header for row in rows}.values()
    sweeps = [header["config"].get("sweep") for header in shown]
    begun = {(id(row.header), row.settings["name"]) for row in rows}
    if any((id(header), row["name"]) not in begun for header in shown for row in header.get("rows") or ()):
        why = "Some rows are not asked yet."
    elif any(sweep is not None and not sweep["controls"] for sweep in sweeps):
        why = "The settings leave them out (sweep.controls: false)."
    else:
        why = "A sweep adds what it can; rows that are listed one by one get none, so list them, too."
    return (
        f"Controls missing from this table: {'; '.join(found)}. Without them it is open whether a method is better "
        f"than what needs no method. {why}"
    )


# ---- published scores


def calibration(rows: Sequence[Row]) -> list[str]:
    """What the published scores say of a table; that there are none is said once."""
    gates: dict[tuple[int, Gate], list[Row]] = {}
    for row in rows:
        if row.gate is not None:
            gates.setdefault((id(row.header), row.gate), []).append(row)
    found = [_told(gate, of) for (_, gate), of in gates.items()]
    without = [row.name for row in rows if row.gate is None]
    if without:
        which = "these figures" if len(without) == len(rows) else f"the figures of {', '.join(without)}"
        found.append(f"No published score is set for {which} (published), so nothing says whether they agree with one.")
    return found


def _told(gate: Gate, rows: Sequence[Row]) -> str:
    others = [row.name for row in rows if row.settings["name"] != gate.row]
    marked = f" Therefore {gate.mark}: {', '.join(others)}." if gate.mark and others else ""
    if gate.mark == MISSED and gate.measured is not None:
        return f"Uncalibrated. {gate.told}: missed by {abs(gate.measured - gate.score):.1f} points.{marked}"
    if gate.mark == NOT_YET:
        return f"Not calibrated yet. {gate.told}.{marked}"
    return f"Calibrated. {gate.told}."


# ---- judges


def judges(rows: Sequence[Row]) -> list[str]:
    """Who judged, and how many answers still wait."""
    found = []
    for name in dict.fromkeys(row.header["judge"]["model"] for row in rows if row.verdicts is not None):
        judged = [row for row in rows if row.verdicts is not None and row.header["judge"]["model"] == name]
        waiting = sum(row.unjudged for row in judged)
        said = f"Judged by {name}: the share of yes, and the mean score from 0 to 5. Never compare across judges."
        more = f" {waiting} answers are not judged yet and count as wrong there; start the evaluation again."
        found.append(said + (more if waiting else ""))
    return found
