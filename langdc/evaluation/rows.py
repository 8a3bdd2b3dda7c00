"""What run folders say, as figures: one summary per row, compared with a reference. All is read from the files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from langdc.density import density_correlation
from langdc.evaluation import statistics
from langdc.evaluation.cost import Spread, mean_flops, stage_seconds, tokens_per_second
from langdc.evaluation.gate import Gate, gate_of, gates
from langdc.evaluation.judge import Verdict, memory_of, remembered
from langdc.evaluation.results import RunFolder, identity_hash
from langdc.evaluation.statistics import RESAMPLES, Difference, Estimate, Strata
from langdc.registry import nearest

_NAN = float("nan")
RESAMPLES_PER_ROW = 80
"""So many resamples per compared row at least, or no p value could be small enough to stay so once it is corrected."""


def score(answer: dict) -> float:
    """What an answer is worth, 0 to 1: its "score"; 1 or 0 by "correct" in files without scores."""
    return float(answer["score"] if "score" in answer else answer["correct"])


@dataclass(frozen=True)
class Share:
    """How many of `n` were right; partly right answers count by their score."""

    right: float
    n: int

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.right / self.n if self.n else float("nan")


@dataclass(eq=False)
class Row:
    """One row: the lines of its file and what the header says of it. `name` tells it from rows of other runs.

    `sessions`: what each start of its run took. `verdicts`: the judge's on each of its answers, None where one waits;
    without a judge there are none. `gate`: the published score that speaks for it.
    """

    name: str
    header: dict
    settings: dict
    lines: list[dict]
    sessions: Sequence[dict] = ()
    difference: Difference | None = None
    verdicts: list[Verdict | None] | None = None
    gate: Gate | None = None

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

    @cached_property
    def accuracy(self) -> Estimate | None:
        """Mean score of the target kinds, with its interval; None before the first answer.

        Over questions, or over kinds where the task says how much each weighs.
        """
        return self._mean([score(line) for line in self.targets], self.targets)

    def _mean(self, worth: list[float], answers: Sequence[dict]) -> Estimate | None:
        if not answers:
            return None
        videos = [line["video"] for line in answers]
        return statistics.mean(worth, videos, within=(0.0, 1.0), strata=_strata(self.header, answers))

    @cached_property
    def judged(self) -> list[tuple[dict, Verdict]] | None:
        """The target answers with their verdicts, none for one that waits; None if nothing was judged."""
        if self.verdicts is None or all(verdict is None for verdict in self.verdicts):
            return None
        pairs = zip(self.answers, self.verdicts, strict=True)
        return [(a, verdict or Verdict()) for a, verdict in pairs if a["kind"] in self.header["target_kinds"]]

    @cached_property
    def judged_accuracy(self) -> Estimate | None:
        """The share of the target answers that the judge calls right; None if nothing was judged."""
        if not self.judged:
            return None
        return self._mean([float(verdict.right) for _, verdict in self.judged], [line for line, _ in self.judged])

    @property
    def judged_score(self) -> float:
        """The judge's mean score, 0 to 5; NaN if nothing was judged."""
        return sum(verdict.score for _, verdict in self.judged) / len(self.judged) if self.judged else _NAN

    @property
    def unjudged(self) -> int:
        """How many of its answers wait for the judge."""
        return (self.verdicts or []).count(None)

    @property
    def worth(self) -> list[tuple[dict, float]] | None:
        """Its answers with what they are worth beside a published score, the judge's word if there is one.

        None while answers or verdicts are to come.
        """
        if not self.finished or self.unjudged:
            return None
        if self.verdicts is None:
            return [(line, score(line)) for line in self.answers]
        return [(line, float(v.right)) for line, v in zip(self.answers, self.verdicts, strict=True) if v is not None]

    @property
    def mark(self) -> str:
        """What its run's published score makes of it: "uncalibrated", "not calibrated yet" or nothing."""
        return self.gate.mark if self.gate is not None else ""

    @cached_property
    def kinds(self) -> dict[str, Share]:
        """Right answers by kind of question, target kinds first."""
        order = [*self.header["target_kinds"], *(line["kind"] for line in self.answers)]
        by_kind = {kind: [score(a) for a in self.answers if a["kind"] == kind] for kind in dict.fromkeys(order)}
        return {kind: Share(sum(right), len(right)) for kind, right in by_kind.items() if right}

    @cached_property
    def chance(self) -> dict[str, float]:
        """What always giving the most frequent answer of a kind would reach, by kind."""
        return {
            kind: statistics.majority([line["expected"] for line in self.answers if line["kind"] == kind])
            for kind in self.kinds
        }

    @property
    def target_chance(self) -> float:
        """The same over the target kinds, which weigh as in the accuracy."""
        chance = self.chance
        found = self._mean([chance[line["kind"]] for line in self.targets], self.targets)
        return _NAN if found is None else found.value

    @cached_property
    def failures(self) -> list[dict]:
        """The questions that got no answer and score 0; "reason" says why."""
        return [line for line in self.answers if line["failed"]]

    @property
    def failed(self) -> int:
        """How many those are."""
        return len(self.failures)

    @cached_property
    def unparsed(self) -> list[dict]:
        """The answers in whose words no answer could be found, and which score 0."""
        return [line for line in self.answers if not line["failed"] and "parsed" in line and line["parsed"] is None]

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
        """Captions that are exactly the record's, by density; {} for rows without captions or densities."""
        found: dict[int, list[bool]] = {}
        for video, exact in self._exact:
            if len(video["densities"]) == len(exact):
                for density, right in zip(video["densities"], exact, strict=True):
                    found.setdefault(density, []).append(right)
        return {density: Share(sum(found[density]), len(found[density])) for density in sorted(found)}

    @property
    def exact_captions(self) -> Share:
        """The same over all segments."""
        found = [right for _, exact in self._exact for right in exact]
        return Share(sum(found), len(found))

    @property
    def _exact(self) -> list[tuple[dict, list[bool]]]:
        """Videos with captions of their segments, and which of these are exactly the record's."""
        fits = [v for v in self.videos if v["captions"] is not None and len(v["captions"]) == len(v["targets"])]
        pairs = [zip(video["captions"], video["targets"], strict=True) for video in fits]
        return [(v, [said.split() == target.split() for said, target in of]) for v, of in zip(fits, pairs, strict=True)]

    @property
    def cue_recall(self) -> float:
        """Mean share of a segment's cues that its caption mentions; NaN for rows or records without."""
        shares = [share for video in self.videos for share in video.get("cue_recall") or () if share is not None]
        return sum(shares) / len(shares) if shares else float("nan")

    @cached_property
    def stages(self) -> dict[str, Spread]:
        """Seconds per stage and of their sums: median and 95th percentile."""
        return stage_seconds(self.of("timing"))

    @property
    def seconds(self) -> dict[str, float]:
        """The medians of those."""
        return {stage: found.median for stage, found in self.stages.items()}

    @property
    def tokens_per_second(self) -> float:
        """How fast replies are written, median; NaN where no line says."""
        return tokens_per_second(self.of("timing"))

    @property
    def peak_bytes(self) -> float:
        """The most memory of an accelerator that a video alone took; NaN without an accelerator."""
        return max((float(line["peak_bytes"]) for line in self.of("timing") if line.get("peak_bytes")), default=_NAN)

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

    @property
    def commits(self) -> list[str]:
        """The commits of the source tree that its run was made with, one unless it went on with another."""
        return list(dict.fromkeys(session["commit"] or "unknown" for session in self.header["sessions"]))

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of its run's settings, its weights and its questions; "unknown" where the header has none."""
        weights = (self.header.get("weights_sha256") or {}).get(self.settings["name"])
        found = {"weights": weights, "data": self.header.get("data_sha256")}
        return {"config": identity_hash(self.header["config"]), **{k: v or "unknown" for k, v in found.items()}}


def _strata(header: dict, answers: Sequence[dict]) -> Strata | None:
    """The kinds of questions with their weights, where the headline is a mean over kinds."""
    weights = header.get("kind_weights")
    return None if weights is None else Strata([line["kind"] for line in answers], weights)


def read_rows(directories: Sequence[Path], reference: str | None = None) -> list[Row]:
    """All rows of runs, each compared with the reference: the one named, or that of the first run that has one.

    A row whose name occurs in several runs gets its folder's name in front. Raises ValueError if there are no rows, a
    folder holds no run, or the reference is none of the rows.
    """
    folders = [RunFolder.read(directory) for directory in directories]
    names = [name for folder in folders for name in folder.names()]
    rows = []
    for folder in folders:
        settings = {row["name"]: row for row in folder.rows}
        begun = {
            name: Row(name, folder.header, settings[name], folder.lines(name), folder.sessions())
            for name in folder.names()
        }
        _judge(folder, list(begun.values()))
        for name, row in begun.items():
            row.name = name if names.count(name) == 1 else f"{folder.directory.name}/{name}"
            rows.append(row)
    if not rows:
        raise ValueError(f"There are no rows in {', '.join(map(str, directories))} yet.")
    wanted = reference or next(
        (f.header["config"]["reference"] for f in folders if f.header["config"]["reference"]), None
    )
    return rows if wanted is None else compare(rows, wanted, explicit=reference is not None)


def _judge(folder: RunFolder, rows: Sequence[Row]) -> None:
    """Give a run's rows the judge's verdicts, and the published scores that speak for them."""
    header = folder.header
    if judge := header.get("judge"):
        memory = memory_of(folder.directory)
        for row in rows:
            row.verdicts = remembered(memory, judge, row.lines)
    names = [row["name"] for row in folder.rows]
    measured = {row.name: row.worth for row in rows}
    speaking = gate_of(gates(header.get("published") or (), names, header, measured), folder.rows)
    for row in rows:
        row.gate = speaking.get(row.name)


def compare(rows: list[Row], reference: str, explicit: bool = True) -> list[Row]:
    """Give every other row its paired difference to the reference, over the target questions both were asked.

    The p values are corrected over all rows compared here.
    """
    found = [row for row in rows if reference in (row.name, row.settings["name"])]
    if not found and not explicit:
        return rows  # the config's reference has not been evaluated yet
    if not found:
        raise ValueError(f"The reference {reference!r} is no row.{nearest(reference, [row.name for row in rows])}")
    compared = {row: shared for row in rows if row is not found[0] and (shared := _shared(row, found[0]))}
    resamples = max(RESAMPLES, RESAMPLES_PER_ROW * len(compared))
    alone = [_against(row, shared, resamples) for row, shared in compared.items()]
    for row, difference in zip(compared, statistics.corrected(alone), strict=True):
        row.difference = difference
    return rows


def _shared(row: Row, reference: Row) -> list[tuple[dict, dict]]:
    """The target answers of a row, each with the reference's to the same question."""
    base = {line["key"]: line for line in reference.targets}
    return [(line, base[line["key"]]) for line in row.targets if line["key"] in base and _same(line, base[line["key"]])]


def _against(row: Row, shared: Sequence[tuple[dict, dict]], resamples: int) -> Difference:
    ours, others = ([score(line) for line in lines] for lines in zip(*shared, strict=True))
    own = [line for line, _ in shared]
    videos, strata = [line["video"] for line in own], _strata(row.header, own)
    return statistics.paired_difference(ours, others, videos, resamples=resamples, strata=strata)


def _same(one: dict, other: dict) -> bool:
    return (one["question"], one["expected"]) == (other["question"], other["expected"])
