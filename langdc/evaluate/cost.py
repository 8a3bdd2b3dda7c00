"""What answering costs an entry: seconds per stage, operations; and what the evaluation loop takes itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

LANGUAGE_MODEL = ("prefill", "generate")


@dataclass(frozen=True)
class Spread:
    """Seconds of `n` videos: the median and the 95th percentile, linear between samples."""

    median: float
    p95: float
    n: int


def stage_seconds(timings: Sequence[dict]) -> dict[str, Spread]:
    """Seconds per stage over the warm "timing" lines of an entry, and of their sums; {} if there are none.

    The sums are taken per video: "first_token" up to the first token of the reply, "total" to its last, "without_llm"
    is the total without the language model's stages. Decoding and encoding, done once per video, count for every entry.
    """
    warm = [line["seconds"] for line in timings if line["warm"]]
    sums = {"first_token": ("generate",), "total": (), "without_llm": LANGUAGE_MODEL}
    seconds: dict[str, list[float]] = {
        **{stage: [line.get(stage, 0.0) for line in warm] for line in warm for stage in line},
        **{
            name: [sum(s for stage, s in line.items() if stage not in without) for line in warm]
            for name, without in sums.items()
        },
    }
    return {
        name: Spread(median(found), float(np.quantile(found, 0.95)), len(found))
        for name, found in seconds.items()
        if found
    }


def tokens_per_second(timings: Sequence[dict]) -> float:
    """Tokens of a reply per second after the first, median over warm lines; NaN where no line has "reply_tokens".

    The first token belongs to prefill, so replies of one token do not count.
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


def loop_cost(sessions: Sequence[dict]) -> str:
    """What "session" lines say together: how often videos were decoded, and the share of time outside the stages."""
    if not sessions:
        return ""
    sums = {name: sum(line.get(name, 0) for line in sessions) for name in ("seconds", "videos", "decoded", "read")}
    staged = sum(seconds for line in sessions for seconds in line["stages"].values())
    read = f" and read {sums['read']} times from stored encoder outputs" if sums["read"] else ""
    return (
        f"{sums['videos']} videos were decoded and encoded {sums['decoded']} times{read} in all; the loop spent "
        f"{100 * (1 - staged / sums['seconds']):.1f} % of {sums['seconds']:.1f} s outside decoding, preprocessing, "
        "encoding, compressing, prefill and generation."
    )
