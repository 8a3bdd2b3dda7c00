"""What run folders say, as figures: one summary per row, and tables of them. Everything is read from the files."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from langdc.density import density_correlation
from langdc.evaluation import statistics
from langdc.evaluation.cost import mean_flops, median_seconds
from langdc.evaluation.results import RunFolder, read_lines
from langdc.evaluation.statistics import Difference, Estimate
from langdc.registry import nearest

APART = (
    "Not at an equal budget: what these rows took is more than 2 % from the row they should match, as the column "
    "budget says, so do not compare their accuracy with rows above."
)


@dataclass(frozen=True)
class Share:
    """How many of `n` were right."""

    right: int
    n: int

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.right / self.n if self.n else float("nan")


@dataclass(eq=False)
class Row:
    """One row: the lines of its file and what the header says of it. `name` tells it from rows of other runs."""

    name: str
    header: dict
    settings: dict
    lines: list[dict]
    difference: Difference | None = None

    def of(self, kind: str) -> list[dict]:
        """Its lines of a type."""
        return [line for line in self.lines if line["type"] == kind]

    @property
    def finished(self) -> bool:
        """Whether all its questions were asked."""
        return any(line["type"] == "finished" for line in self.lines)

    @property
    def training(self) -> dict:
        """What went into its model: samples, steps, flops, seconds."""
        return self.header["training"].get(self.settings["name"], {})

    @cached_property
    def answers(self) -> list[dict]:
        """One line per question."""
        return self.of("answer")

    @cached_property
    def targets(self) -> list[dict]:
        """The answers that count for the headline accuracy."""
        return [line for line in self.answers if line["kind"] in self.header["target_kinds"]]

    @property
    def accuracy(self) -> Estimate | None:
        """Of the target kinds, with its interval; None before the first answer."""
        return _estimate(self.targets)

    @property
    def kinds(self) -> dict[str, Share]:
        """Right answers by kind of question, target kinds first."""
        order = [*self.header["target_kinds"], *(line["kind"] for line in self.answers)]
        by_kind = {kind: [a["correct"] for a in self.answers if a["kind"] == kind] for kind in dict.fromkeys(order)}
        return {kind: Share(sum(right), len(right)) for kind, right in by_kind.items() if right}

    @property
    def chance(self) -> dict[str, float]:
        """What always giving the most frequent answer of a kind would reach, by kind."""
        return {
            kind: statistics.majority([line["expected"] for line in self.answers if line["kind"] == kind])
            for kind in self.kinds
        }

    @property
    def target_chance(self) -> float:
        """The same over the target kinds, each weighted by its questions."""
        chance = self.chance
        return sum(chance[line["kind"]] for line in self.targets) / len(self.targets) if self.targets else float("nan")

    @property
    def failed(self) -> int:
        """Questions that got no answer and count as wrong."""
        return sum(line["failed"] for line in self.answers)

    @cached_property
    def videos(self) -> list[dict]:
        """One line per video that was answered."""
        return self.of("video")

    @property
    def tokens(self) -> Estimate | None:
        """Video tokens the language model read, per video."""
        if not self.videos:
            return None
        return statistics.mean([v["tokens"] for v in self.videos], [v["video"] for v in self.videos])

    @property
    def segments(self) -> tuple[list[int], list[int]]:
        """Density and tokens of every segment, where the records give a density for each."""
        fits = [v for v in self.videos if len(v["densities"]) == len(v["segment_tokens"])]
        return [d for v in fits for d in v["densities"]], [t for v in fits for t in v["segment_tokens"]]

    @property
    def density_correlation(self) -> float:
        """Spearman's rank correlation of density and tokens over segments; NaN where one never varies."""
        densities, tokens = self.segments
        return density_correlation(densities, tokens) if len(densities) > 2 else float("nan")

    @property
    def captions(self) -> dict[int, Share]:
        """Captions that are exactly the record's, by density; {} for rows without captions."""
        found: dict[int, list[bool]] = {}
        for video in self.videos:
            if video["captions"] is None or len(video["captions"]) != len(video["targets"]):
                continue
            for density, said, target in zip(video["densities"], video["captions"], video["targets"], strict=True):
                found.setdefault(density, []).append(said.split() == target.split())
        return {density: Share(sum(found[density]), len(found[density])) for density in sorted(found)}

    @property
    def exact_captions(self) -> Share:
        """The same over all segments."""
        shares = self.captions.values()
        return Share(sum(share.right for share in shares), sum(share.n for share in shares))

    @property
    def cue_recall(self) -> float:
        """Mean share of a segment's cues that its caption mentions; NaN for rows or records without."""
        shares = [share for video in self.videos for share in video.get("cue_recall") or () if share is not None]
        return sum(shares) / len(shares) if shares else float("nan")

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Median seconds per stage and to the first token."""
        return median_seconds(self.of("timing"))

    @property
    def kv_bytes(self) -> float:
        """Mean bytes that the cache held when a reply began; NaN where no line says."""
        held = [line["kv_bytes"] for line in self.answers if line.get("kv_bytes")]
        return sum(held) / len(held) if held else float("nan")

    @cached_property
    def budget(self) -> dict | None:
        """How near its budget came to that of the row it matches: "match", "measure", "ratio", "equal"."""
        return next(iter(self.of("budget")), None)

    @property
    def apart(self) -> bool:
        """Whether its budget should be another row's and is not, so that the two must not be compared."""
        return self.budget is not None and not self.budget["equal"]

    @cached_property
    def flops(self) -> dict[str, float]:
        """Mean operations for one question about one video, by part and in total."""
        return mean_flops(self.answers)


def _estimate(answers: Sequence[dict]) -> Estimate | None:
    if not answers:
        return None
    return statistics.mean([float(line["correct"]) for line in answers], [line["video"] for line in answers])


def read_rows(directories: Sequence[Path], reference: str | None = None) -> list[Row]:
    """All rows of runs, each compared with the reference: the one named, or that of the first run that has one.

    A row whose name occurs in several runs gets its folder's name in front. Raises ValueError if there are no rows, a
    folder holds no run, or the reference is none of the rows.
    """
    folders = [RunFolder.read(directory) for directory in directories]
    names = [name for folder in folders for name in folder.names()]
    rows = []
    for folder in folders:
        settings = {row["name"]: row for row in folder.header["config"]["rows"]}
        for name in folder.names():
            shown = name if names.count(name) == 1 else f"{folder.directory.name}/{name}"
            rows.append(Row(shown, folder.header, settings[name], read_lines(folder.row_path(name))))
    if not rows:
        raise ValueError(f"There are no rows in {', '.join(map(str, directories))} yet.")
    wanted = reference or next(
        (f.header["config"]["reference"] for f in folders if f.header["config"]["reference"]), None
    )
    return rows if wanted is None else compare(rows, wanted, explicit=reference is not None)


def compare(rows: list[Row], reference: str, explicit: bool = True) -> list[Row]:
    """Give every other row its paired difference to the reference, over the target questions both were asked."""
    found = [row for row in rows if reference in (row.name, row.settings["name"])]
    if not found and not explicit:
        return rows  # the config's reference has not been evaluated yet
    if not found:
        raise ValueError(f"The reference {reference!r} is no row.{nearest(reference, [row.name for row in rows])}")
    base = {line["key"]: line for line in found[0].targets}
    for row in rows:
        shared = [line for line in row.targets if line["key"] in base and _same(line, base[line["key"]])]
        if row is found[0] or not shared:
            continue
        row.difference = statistics.paired_difference(
            [float(line["correct"]) for line in shared],
            [float(base[line["key"]]["correct"]) for line in shared],
            [line["video"] for line in shared],
        )
    return rows


def _same(one: dict, other: dict) -> bool:
    return (one["question"], one["expected"]) == (other["question"], other["expected"])


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
        "tokens/video": Cell("-" if tokens is None else f"{tokens.value:.1f}", tokens and tokens.value),
        "KV bytes": Cell(quantity(held), _known(held)),
        "budget": Cell(*_budget(row)),
        "first token ms": Cell("-" if first is None else f"{1000 * first:.1f}", first),
        "FLOPs/question": Cell(quantity(row.flops.get("total")), row.flops.get("total")),
        "against reference": Cell(*_difference(row)),
        **{kind: Cell(_percent(share.value), share.value) for kind, share in kinds.items()},
        "exact captions %": Cell(_percent(row.exact_captions.value), _known(row.exact_captions.value)),
        "cue recall %": Cell(_percent(row.cue_recall), _known(row.cue_recall)),
        "density rho": Cell("-" if rho != rho else f"{rho:.3f}", _known(rho)),
        "failed": Cell(str(row.failed), row.failed),
        **{
            f"train {name}": Cell(_trained(row, name), row.training.get(name)) for name in ("samples", "steps", "flops")
        },
    }


def _titled(row: Row) -> str:
    limit = row.settings.get("limit")
    return row.name + (f" (first {limit} videos)" if limit else "") + ("" if row.finished else " (unfinished)")


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
    """The table in Markdown; rows that could not be matched have one of their own below."""
    equal, apart = split(rows)
    parts = [_markdown(equal)] if equal else []
    return "\n".join([*parts, f"{APART}\n\n{_markdown(apart)}"] if apart else parts)


def _markdown(rows: Sequence[Row]) -> str:
    titles, lines = table(rows)
    body = ["| " + " | ".join(cell.text for cell in line) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles), *body]) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """The table with full numbers, interval bounds and verdicts in columns of their own."""
    records: list[dict[str, Any]] = []
    for row in rows:
        accuracy, tokens, difference = row.accuracy, row.tokens, row.difference
        record: dict[str, Any] = {"row": row.name, "finished": row.finished, "failed": row.failed}
        record |= _flat("accuracy", accuracy, "value", "low", "high", "error", "n", "clusters")
        record |= {"chance": row.target_chance}
        record |= {f"accuracy_{kind}": share.value for kind, share in row.kinds.items()}
        record |= {f"n_{kind}": share.n for kind, share in row.kinds.items()}
        record |= _flat("tokens", tokens, "value", "low", "high")
        record |= {"kv_bytes": row.kv_bytes}
        record |= {f"budget_{name}": (row.budget or {}).get(name) for name in ("match", "measure", "ratio", "equal")}
        record |= _flat("difference", difference, "value", "low", "high", "verdict")
        record |= {f"seconds_{stage}": seconds for stage, seconds in row.seconds.items()}
        record |= {f"flops_{part}": flops for part, flops in row.flops.items()}
        record |= {"density_correlation": row.density_correlation, "captions_exact": row.exact_captions.value}
        record |= {"captions": row.exact_captions.n, "cue_recall": row.cue_recall}
        record |= {f"train_{name}": row.training.get(name) for name in ("samples", "steps", "flops", "seconds")}
        records.append(record)
    text = io.StringIO()
    titles = list(dict.fromkeys(title for record in records for title in record))
    writer = csv.DictWriter(text, titles, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _flat(prefix: str, found: Any, *names: str) -> dict[str, Any]:
    return {f"{prefix}_{name}": getattr(found, name) for name in names} if found is not None else {}
