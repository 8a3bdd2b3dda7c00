"""What answering costs a row: seconds per stage and to the first token, operations; and what the loop takes itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

LANGUAGE_MODEL = ("prefill", "generate")


def first_token_seconds(seconds: dict[str, float]) -> float:
    """All stages but the last. What is done once per video (decoding, encoding) is charged to every row."""
    return sum(taken for stage, taken in seconds.items() if stage != "generate")


@dataclass(frozen=True)
class Spread:
    """Seconds of `n` videos: the median and the 95th percentile, between samples in a straight line."""

    median: float
    p95: float
    n: int


def stage_seconds(timings: Sequence[dict]) -> dict[str, Spread]:
    """Seconds per stage over the warm "timing" lines of a row, and of their sums; {} if none.

    The sums are taken per video: "first_token" up to the first token of the reply, "total" to its last, "without_llm"
    what would be left of it if the language model took no time.
    """
    warm = [line["seconds"] for line in timings if line["warm"]]
    if not warm:
        return {}
    names = list(dict.fromkeys(stage for seconds in warm for stage in seconds))
    found = {stage: _spread([seconds.get(stage, 0.0) for seconds in warm]) for stage in names}
    sums = {
        "first_token": [first_token_seconds(seconds) for seconds in warm],
        "total": [sum(seconds.values()) for seconds in warm],
        "without_llm": [sum(s for stage, s in seconds.items() if stage not in LANGUAGE_MODEL) for seconds in warm],
    }
    return {**found, **{name: _spread(of) for name, of in sums.items()}}


def _spread(seconds: Sequence[float]) -> Spread:
    return Spread(median(seconds), float(np.quantile(seconds, 0.95)), len(seconds))


def tokens_per_second(timings: Sequence[dict]) -> float:
    """How many tokens of a reply follow the first per second, median over warm lines; NaN where none say.

    A line says it with "reply_tokens", of which the first belongs to prefill; replies of one token say nothing.
    """
    rates = [
        (line["reply_tokens"] - 1) / line["seconds"]["generate"]
        for line in timings
        if line["warm"] and (line.get("reply_tokens") or 0) > 1 and line["seconds"].get("generate")
    ]
    return median(rates) if rates else float("nan")


def mean_flops(answers: Sequence[dict]) -> dict[str, float]:
    """Mean operations per part for one question about one video, over "answer" lines that did not fail; and "total"."""
    known = [line["flops"] for line in answers if line.get("flops")]
    if not known:
        return {}
    parts = {part: fmean(flops.get(part, 0.0) for flops in known) for part in known[0]}
    return {**parts, "total": sum(parts.values())}


@dataclass(frozen=True)
class LoopCost:
    """What the loop itself took: `seconds` of all processes and sessions, those of them in stages, and how often its
    `videos` were `decoded`, which is how often they were encoded, too, or `read` from stored encoder outputs.
    """

    seconds: float
    staged: float
    videos: int
    decoded: int
    read: int = 0

    @property
    def overhead(self) -> float:
        """The share of time outside the stages: loading models, scoring, writing."""
        return 1 - self.staged / self.seconds

    def __str__(self) -> str:
        read = f" and read {self.read} times from stored encoder outputs" if self.read else ""
        return (
            f"{self.videos} videos were decoded and encoded {self.decoded} times{read} in all; the loop spent "
            f"{100 * self.overhead:.1f} % of {self.seconds:.1f} s outside decoding, preprocessing, encoding, "
            "compressing, prefill and generation."
        )


def loop_cost(sessions: Sequence[dict]) -> LoopCost | None:
    """The sum over "session" lines; None without any."""
    if not sessions:
        return None
    staged = sum(seconds for line in sessions for seconds in line["stages"].values())
    sums = {name: sum(line.get(name, 0) for line in sessions) for name in ("seconds", "videos", "decoded", "read")}
    return LoopCost(sums["seconds"], staged, sums["videos"], sums["decoded"], sums["read"])
