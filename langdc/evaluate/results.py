"""The figures of one entry, from its lines in an evaluation folder."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from statistics import fmean, median

import pandas as pd

from langdc.density import density_correlation
from langdc.evaluate import statistics
from langdc.evaluate.judge import Case, Verdict
from langdc.evaluate.published import ReproductionCheck
from langdc.evaluate.statistics import Difference, Estimate, Strata
from langdc.hashing import json_hash

NAN = float("nan")
TOLERANCE = 0.02
"""Relative difference up to which two budgets count as equal."""

SUMS = {"first_token": ("generate",), "total": (), "without_llm": ("prefill", "generate")}
"""Sums of stages, and which they leave out: to the first token of a reply, to its last, without the language model."""


@dataclass(frozen=True)
class _Share:
    """The share of `n` that was right; partly right answers count by their score. NaN if n is 0."""

    value: float
    n: int

    @classmethod
    def of(cls, right: Sequence[float]) -> "_Share":
        return cls(sum(right) / len(right) if right else NAN, len(right))


@dataclass(frozen=True)
class _Spread:
    """Seconds of `n` videos: the median and the 95th percentile, linear between samples."""

    median: float
    p95: float
    n: int


@dataclass(eq=False)
class Result:
    """One entry's result: its lines and the header of its folder. `name` tells it from entries of other folders.

    `loop_cost`: what the evaluation loop took, in words. `verdicts`: the judge's on each judged answer, None where one
    waits; without a judge there are none. `check`: the published score it is checked against. `difference`: to the
    reference; `against_random`: to the same number of random tokens or keys of the same model; `above_budget`: how much
    more it keeps than those, in words, so that it is not compared with them. `runs`: the results of its method, one per
    seed; `over_seeds`: the difference of their means to the reference's.
    """

    name: str
    header: dict
    settings: dict
    lines: list[dict]
    loop_cost: str = ""
    difference: Difference | None = None
    against_random: Difference | None = None
    above_budget: str = ""
    verdicts: list[Verdict | None] | None = None
    check: ReproductionCheck | None = None
    runs: "list[Result]" = field(default_factory=list, repr=False)
    over_seeds: Difference | None = None

    def of_type(self, kind: str) -> list[dict]:
        """Its lines of a type."""
        return [line for line in self.lines if line["type"] == kind]

    @property
    def finished(self) -> bool:
        return bool(self.of_type("finished"))

    @property
    def repeated(self) -> bool:
        """Whether other entries repeat it with another seed."""
        return len(self.runs) > 1 and not self.settings.get("repeats")

    @property
    def parts(self) -> dict[str, dict]:
        """Its methods by site, in the order in which they act."""
        return {site: self.settings[site] for site in ("compressor", "layers", "kv") if self.settings.get(site)}

    @property
    def keep(self) -> float | None:
        """The fraction that its last method keeps; None where none is given."""
        parts = self.parts
        return parts[list(parts)[-1]].get("keep") if parts else None

    @property
    def share(self) -> float | None:
        """The fraction that all its methods keep together; None where the last names none, or an earlier one a number
        of tokens.
        """
        parts = list(self.parts.values())
        counted = any(part.get("tokens") is not None for part in parts[:-1])
        return None if self.keep is None or counted else prod(part.get("keep") or 1.0 for part in parts)

    @property
    def conditions(self) -> list:
        """What must be equal for methods to be compared at a budget."""
        names = ("model", "backbone", "frames", "limit")
        return [self.header["config"]["task"], *(self.settings.get(name) for name in names)]

    @property
    def training(self) -> dict:
        """What went into its model: samples, steps, flops, seconds."""
        return self.header["training"].get(self.settings["name"], {})

    # ---- answers

    @cached_property
    def answers(self) -> list[dict]:
        """One line per question."""
        return self.of_type("answer")

    @cached_property
    def scored(self) -> list[dict]:
        """The answers to questions whose right answer is known."""
        return [line for line in self.answers if line["score"] is not None]

    @cached_property
    def targets(self) -> list[dict]:
        """The scored answers that count for the headline accuracy."""
        return [line for line in self.scored if line["kind"] in self.header["target_kinds"]]

    @cached_property
    def accuracy(self) -> Estimate | None:
        """Mean score of the target questions, or of the kinds with their weights; None before the first answer."""
        return self._mean([line["score"] for line in self.targets], self.targets)

    def _mean(self, scores: Sequence[float], answers: Sequence[dict]) -> Estimate | None:
        if not answers:
            return None
        found = statistics.mean(scores, files_of(answers), strata_of(self.header, answers))
        return found if found.clusters > 1 else Estimate(found.value, 0.0, 1.0, found.error, found.n, 1)

    @cached_property
    def kinds(self) -> dict[str, _Share]:
        """Right answers by kind of question, target kinds first."""
        order = dict.fromkeys([*self.header["target_kinds"], *(line["kind"] for line in self.scored)])
        by_kind = {kind: [line["score"] for line in self.scored if line["kind"] == kind] for kind in order}
        return {kind: _Share.of(right) for kind, right in by_kind.items() if right}

    @cached_property
    def chance(self) -> dict[str, float]:
        """The accuracy of always giving the most frequent answer of a kind, by kind."""
        expected = {kind: [line["expected"] for line in self.scored if line["kind"] == kind] for kind in self.kinds}
        return {kind: max(Counter(answers).values()) / len(answers) for kind, answers in expected.items()}

    @cached_property
    def target_chance(self) -> float:
        """The same over the target kinds, which weigh as in the accuracy."""
        return self._chance(self.targets)

    def _chance(self, answers: Sequence[dict]) -> float:
        found = self._mean([self.chance[line["kind"]] for line in answers], answers)
        return NAN if found is None else found.value

    @cached_property
    def groups(self) -> dict[str, tuple[Estimate | None, float]]:
        """By the label "group" of target questions, their accuracy and that of the most frequent answers, as above.
        Empty where all are of one group, which would say the same twice.
        """
        found: dict[str, list[dict]] = {}
        for line in self.targets:
            if group := (line.get("labels") or {}).get("group"):
                found.setdefault(group, []).append(line)
        if any(len(lines) == len(self.targets) for lines in found.values()):
            return {}
        return {
            name: (self._mean([x["score"] for x in lines], lines), self._chance(lines)) for name, lines in found.items()
        }

    @cached_property
    def failures(self) -> list[dict]:
        """The questions that got no answer and score 0; "reason" says why."""
        return [line for line in self.answers if line["failed"]]

    @cached_property
    def unparsed(self) -> list[dict]:
        """The replies in which no answer could be found, and which score 0."""
        return [line for line in self.answers if not line["failed"] and "parsed" in line and line["parsed"] is None]

    # ---- the judge, published scores

    @cached_property
    def judged(self) -> tuple[Estimate | None, float]:
        """Share of target answers judged right, and their mean score (0 to 5).

        An answer that waits counts as wrong. None and NaN if nothing was judged.
        """
        if self.verdicts is None or self.unjudged == len(self.verdicts):
            return None, NAN
        pairs = [pair for pair in zip(self.judged_answers, self.verdicts, strict=True) if pair[0] in self.targets]
        if not pairs:
            return None, NAN
        right, scores = zip(*((float(v.right), v.score) if v else (0.0, 0) for _, v in pairs), strict=True)
        return self._mean(right, [line for line, _ in pairs]), sum(scores) / len(scores)

    @property
    def judged_answers(self) -> list[dict]:
        """The answers that `verdicts` are of."""
        return list(filter(Case.judged, self.answers))

    @property
    def unjudged(self) -> int:
        """How many of its answers wait for the judge."""
        return (self.verdicts or []).count(None)

    @property
    def final_scores(self) -> list[tuple[dict, float]] | None:
        """Answers with their scores, from the judge if there is one; None while answers or verdicts are to come."""
        if not self.finished or self.unjudged:
            return None
        judged = zip(self.judged_answers, self.verdicts or (), strict=self.verdicts is not None)
        verdicts = {line["key"]: verdict for line, verdict in judged}
        found = [(line, verdicts.get(line["key"])) for line in self.scored]
        return [(line, line["score"] if verdict is None else float(verdict.right)) for line, verdict in found]

    @property
    def flag(self) -> str:
        """Whether it is "uncalibrated" or "not calibrated yet" by the published score it is checked against."""
        return self.check.flag if self.check is not None else ""

    @property
    def shown_flag(self) -> str:
        """The flag, unless this entry is the one with the published score."""
        return self.flag if self.check is not None and self.settings["name"] != self.check.entry else ""

    # ---- videos

    @cached_property
    def videos(self) -> list[dict]:
        """One line per video that was answered."""
        return self.of_type("video")

    @cached_property
    def tokens(self) -> Estimate | None:
        """Video tokens the language model read, per video."""
        if not self.videos:
            return None
        return statistics.mean([v["tokens"] for v in self.videos], files_of(self.videos))

    @property
    def density_correlation(self) -> float:
        """Spearman's rank correlation of density and tokens over segments; NaN where one never varies."""
        fits = [v for v in self.videos if len(v["densities"]) == len(v["segment_tokens"])]
        pairs = [pair for v in fits for pair in zip(v["densities"], v["segment_tokens"], strict=True)]
        return density_correlation(*zip(*pairs, strict=True)) if len(pairs) > 2 else NAN

    @cached_property
    def _exact(self) -> list[tuple[int | None, float]]:
        """Of each captioned segment its density, if known, and whether its caption is exactly the record's."""
        found: list[tuple[int | None, float]] = []
        for video in self.videos:
            captions, targets, densities = video["captions"], video["targets"], video["densities"]
            if captions is not None and len(captions) == len(targets):
                same = [float(one.split() == other.split()) for one, other in zip(captions, targets, strict=True)]
                found += zip(densities if len(densities) == len(same) else [None] * len(same), same, strict=True)
        return found

    @property
    def captions(self) -> dict[int, _Share]:
        """Captions that are exactly the record's, by density; {} for entries without captions or densities."""
        levels = sorted({density for density, _ in self._exact if density is not None})
        return {level: _Share.of([right for density, right in self._exact if density == level]) for level in levels}

    @property
    def exact_captions(self) -> _Share:
        """The same over all segments."""
        return _Share.of([right for _, right in self._exact])

    @property
    def cue_recall(self) -> float:
        """Mean share of a segment's cues that its caption mentions; NaN for entries or records without."""
        return _Share.of([s for video in self.videos for s in video.get("cue_recall") or () if s is not None]).value

    # ---- costs

    @cached_property
    def _warm(self) -> list[dict]:
        """The timings that count: those after the warm-up."""
        return [line for line in self.of_type("timing") if line["warm"]]

    @cached_property
    def stages(self) -> dict[str, _Spread]:
        """Seconds per stage (0 if a video lacks it) over warm timings, and their SUMS per video; {} without timings."""
        if not self._warm:
            return {}
        seconds = pd.DataFrame([line["seconds"] for line in self._warm]).fillna(0.0)
        sums = {name: seconds.drop(columns=list(rest), errors="ignore").sum(axis=1) for name, rest in SUMS.items()}
        columns = seconds.assign(**sums).items()
        return {str(name): _Spread(float(of.median()), float(of.quantile(0.95)), len(of)) for name, of in columns}

    @property
    def tokens_per_second(self) -> float:
        """Tokens of a reply per second after its first, which belongs to prefill: median over warm timings, or NaN."""
        rates = [
            (line["reply_tokens"] - 1) / line["seconds"]["generate"]
            for line in self._warm
            if (line.get("reply_tokens") or 0) > 1 and line["seconds"].get("generate")
        ]
        return median(rates) if rates else NAN

    @property
    def peak_bytes(self) -> float:
        """The most memory of an accelerator that a video alone took; NaN without an accelerator."""
        known = [float(line["peak_bytes"]) for line in self.of_type("timing") if line.get("peak_bytes")]
        return max(known, default=NAN)

    @cached_property
    def kv_bytes(self) -> float:
        """Mean bytes that the cache held when a reply began; NaN where no line says."""
        return _Share.of([line["kv_bytes"] for line in self.answers if line.get("kv_bytes")]).value

    @cached_property
    def budget(self) -> dict | None:
        """How near its budget came to that of the entry it matches: "match", "measure", "ratio", "equal"."""
        return next(iter(self.of_type("budget")), None)

    @property
    def budget_mismatch(self) -> bool:
        """Whether its budget should equal another entry's and does not, so that the two must not be compared."""
        return self.budget is not None and not self.budget["equal"]

    @cached_property
    def flops(self) -> dict[str, float]:
        """Mean operations for one question about one video, by part and in "total"; {} if no line says."""
        known = [line["flops"] for line in self.answers if line.get("flops")]
        parts = {part: fmean(flops.get(part, 0.0) for flops in known) for part in known[0]} if known else {}
        return {**parts, "total": sum(parts.values())} if parts else {}

    # ---- provenance

    @property
    def commits(self) -> list[str]:
        """The commits of the source tree that it was made with, one unless it was resumed with another."""
        return list(dict.fromkeys(session["commit"] or "unknown" for session in self.header["sessions"]))

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of its settings, its weights and its questions; "unknown" where the header has none."""
        weights = self.header.get("weights_sha256", {}).get(self.settings["name"], "unknown")
        data = self.header.get("data_sha256", "unknown")
        return {"config": json_hash(self.header["config"]), "weights": weights, "data": data}


def strata_of(header: dict, answers: Sequence[dict]) -> Strata | None:
    """The kinds of questions with their weights, where the headline is a mean over kinds."""
    weights = header.get("kind_weights")
    return None if weights is None else ([line["kind"] for line in answers], weights)


def files_of(lines: Sequence[dict]) -> list[str]:
    """The media file of each line, which intervals resample; its record where a line of older versions names none."""
    return [line.get("file", line["video"]) for line in lines]
