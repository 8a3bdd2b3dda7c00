"""What it cost to train a row's model: samples, steps, operations and seconds over all its stages."""

import json
from pathlib import Path
from typing import Any

import yaml

from langdc.checkpoint import locate, read_card

TRAINING = ("samples", "steps", "flops", "seconds")


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
