"""What a row costs: to answer (seconds to the first token, operations) and to train (samples, steps, operations)."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from langdc.checkpoint import locate, read_card

TO_FIRST_TOKEN = ("decode", "encode", "compress", "prefill")
TRAINING = ("samples", "steps", "flops", "seconds")


def first_token_seconds(seconds: dict[str, float]) -> float:
    """Decoding and encoding (measured once per video, charged to every row), compressing, first token."""
    return sum(seconds.get(stage, 0.0) for stage in TO_FIRST_TOKEN)


def median_seconds(timings: Sequence[dict]) -> dict[str, float]:
    """Median seconds per stage over the warm "timing" lines of a row, and of their sum as "first_token"; {} if none."""
    warm = [line["seconds"] for line in timings if line["warm"]]
    if not warm:
        return {}
    stages = list(dict.fromkeys(stage for seconds in warm for stage in seconds))
    found = {stage: median(seconds.get(stage, 0.0) for seconds in warm) for stage in stages}
    return {**found, "first_token": median(first_token_seconds(seconds) for seconds in warm)}


def mean_flops(answers: Sequence[dict]) -> dict[str, float]:
    """Mean operations per part for one question about one video, over "answer" lines that did not fail; and "total"."""
    known = [line["flops"] for line in answers if line.get("flops")]
    if not known:
        return {}
    parts = {part: fmean(flops.get(part, 0.0) for flops in known) for part in known[0]}
    return {**parts, "total": sum(parts.values())}


def training_record(directory: str | Path) -> dict[str, Any]:
    """What went into a checkpoint: {"samples", "steps", "flops", "seconds"} over its stages, each listed in "stages".

    Follows each stage's `start` to the one before. "complete" is false where an earlier stage's directory is gone, so
    that the sums are of the rest only.
    """
    stages: list[dict] = []
    place: Path | None = locate(directory)
    complete = True
    while place is not None:
        if not (place / "langdc.json").is_file():
            complete = False
            break
        card, finished = read_card(place), place / "finished.json"
        figures = json.loads(finished.read_text()) if finished.is_file() else card.get("training") or {}
        stages.append({"stage": card.get("stage"), **{name: figures.get(name) for name in TRAINING}})
        place = _start(place)
    sums = {name: sum(stage[name] or 0 for stage in stages) for name in TRAINING}
    return {**sums, "stages": stages[::-1], "complete": complete}


def _start(directory: Path) -> Path | None:
    """The stage before, as the settings kept with a run say."""
    settings = directory / "config.yaml"
    start = (yaml.safe_load(settings.read_text()) or {}).get("start") if settings.is_file() else None
    return Path(start) if start is not None else None
