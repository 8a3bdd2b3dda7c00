"""Equal budgets: what two entries cost where both were asked, and budgets set on other videos to make it the same.

A compressor before the language model is matched by the video tokens read per video, one inside it by the bytes of keys
and values held when the reply begins. Letters: T frames, H W patch grid.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from langdc.config import MemberConfig
from langdc.data.records import OUTSIDE, Record, leads_outside, read_records
from langdc.evaluate.results import TOLERANCE
from langdc.evaluate.settings import EntryConfig, EvalConfig
from langdc.evaluate.tasks import Task
from langdc.frameselectors import frameselectors
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import layercompressors
from langdc.log import get_logger
from langdc.model import build_training_free
from langdc.pipeline import VideoLM
from langdc.types import Answer
from langdc.watchdog import beat

logger = get_logger(__name__)

CLOSE = 0.004
"""Relative difference at which the search stops."""
GUESSES = 3
"""Budgets tried in proportion before bisection."""


def with_parts(lm: Any, entry: EntryConfig, budget: Mapping[str, Any]) -> VideoLM:
    """The entry's model with its compressors; `budget`: of the one whose budget the entry leaves open, or {}.

    Raises ValueError where they do not fit the model.
    """
    compressor, kv, layers = lm.model.compressor, None, None
    if entry.kv is not None:
        kv = kvcompressors.build(entry.kv.name, **entry.kv.settings, **budget)
    if entry.layers is not None:
        settings = {**entry.layers.settings, **(budget if entry.budgeted == "layers" else {})}
        layers = layercompressors.build(entry.layers.name, **settings)
    if entry.compressor is not None:
        settings = {**entry.compressor.settings, **(budget if entry.budgeted == "compressor" else {})}
        compressor = build_training_free(MemberConfig(name=entry.compressor.name, **settings), lm.model.backbone)
    frames = None if entry.frames is None else frameselectors.of(entry.frames.model_dump())
    try:
        return type(lm)(lm.model, compressor, kv, layers, frames)
    except ValueError as error:
        raise ValueError(f"Entry {entry.name!r}: {error}") from error


def calibration_videos(config: EvalConfig, task: Task) -> list[tuple[Record, Path]]:
    """The videos to set budgets on, which have questions and are none of the task's; [] if no entry's budget is set.

    Raises ValueError if the file is missing, has none, or a video is asked about in the task.
    """
    if config.calibration is None or not any(entry.calibrated for entry in config.all_entries):
        return []
    data = config.calibration.data
    if not data.is_file():
        raise ValueError(
            f"calibration.data: there is no record file {data}. Budgets of entries with 'match' are set on it; "
            "give videos that the task does not ask about, such as those for training."
        )
    tested = {task.path(record).resolve() for record in task.records if record.id not in task.broken}
    found: list[tuple[Record, Path]] = []
    for record in read_records(data):
        path = record.media_path(data.parent)
        if path is None or not record.questions:
            continue
        if not config.allow_outside and leads_outside(path, data.parent):
            raise ValueError(f"calibration.data: {data}, line {record.line}: {path} {OUTSIDE}.")
        if path.resolve() in tested:
            raise ValueError(
                f"calibration.data: {data} shares the video {path} with the task. Budgets must not be set on "
                "what is tested; give other videos, such as those for training."
            )
        found.append((record, path))
        if len(found) == config.calibration.videos:
            return found
    if not found:
        raise ValueError(f"calibration.data: {data} has no video with a question. Give records that have both.")
    return found


def compared(own: Mapping[str, float], other: Mapping[str, float]) -> dict[str, Any]:
    """The means over what both entries were asked, their ratio, and whether that is within TOLERANCE."""
    shared = [key for key in own if key in other]
    if not shared:
        return {"measured": None, "target": None, "ratio": None, "equal": False}
    measured, target = (fmean(one[key] for key in shared) for one in (own, other))
    ratio = measured / target if target else None
    equal = ratio is not None and abs(ratio - 1) <= TOLERANCE
    return {"measured": measured, "target": target, "ratio": ratio, "equal": equal}


def _search(
    target: float, max_number: int, quantity: Callable[[int], float], first: float | None = None
) -> tuple[int, dict[int, float]]:
    """The whole number up to `max_number` whose `quantity`, which grows with it, comes nearest to `target`.

    It begins with the guess `first`, by default the target. First guesses in proportion, then bisection; the smaller of
    equally near ones. Also returns all that were tried.
    """
    tried: dict[int, float] = {}
    low, high, guess = 1, max_number, round(target if first is None else first)
    while low <= high:
        guess = min(max(guess, low), high)
        found = tried[guess] = quantity(guess)
        if abs(found / target - 1) <= CLOSE:
            break
        low, high = (guess + 1, high) if found < target else (low, guess - 1)
        in_proportion = len(tried) < GUESSES and found > 0
        guess = round(guess * target / found) if in_proportion else (low + high) // 2
    return min(sorted(tried), key=lambda number: abs(tried[number] - target)), tried


def calibrate(
    lm: Any,
    entry: EntryConfig,
    target: float,
    videos: Sequence[tuple[Any, str]],
    batch: int,
    before: float | None = None,
) -> dict[str, Any]:
    """Set an entry's budget on `videos`, opened for the bare model `lm` and with a question each.

    `target`: the video tokens that a video has, or the bytes held of a prompt's video. What counts is what the language
    model really read or held. Returns the budget, with target and finding, both in tokens: a number of `tokens`; for
    layers `keep`, since no number can be met by videos of which the first layers read more. `before`: the tokens that a
    video of the target's had before any were dropped, if they are known, on average: the same part is kept of `videos`.
    """
    if entry.kv is not None and kvcompressors.get(entry.kv.name).decoding:
        raise ValueError(
            f"{entry.kv.name} frees no keys of a prompt, so no budget of it holds the bytes of "
            f"{entry.match!r}. Leave out match and give it keep."
        )
    one = _asked(lm, videos[:1], batch)[0]
    unit = (one.kv_bytes - one.kv_text_bytes) / one.tokens  # bytes held of a token
    target = target if entry.measure == "tokens" else target / unit
    text = round(one.kv_text_bytes / unit)  # a budget of keys may count them

    most = max(sum(grid.tokens for grid in video.encoder.values()) for video, _ in videos)
    layers = entry.budgeted == "layers"
    if layers and before:
        target *= fmean(answer.tokens_before for answer in _asked(lm, videos, batch)) / before

    def budget(number: int) -> dict[str, Any]:
        return {"keep": number / most} if layers else {"tokens": number}

    def kept(number: int) -> float:
        beat(f"a budget before {budget(number)}, tried for {entry.name}")
        answers = _asked(with_parts(lm, entry, budget(number)), videos, batch)
        return fmean(a.tokens if entry.measure == "tokens" else (a.kv_bytes - a.kv_text_bytes) / unit for a in answers)

    best, tried = _search(target, most, kept, most) if layers else _search(target, text + most, kept)
    logger.info("%s: %s keeps %.2f; the target is %.2f.", entry.name, budget(best), tried[best], target)
    return {**budget(best), "target": target, "measured": tried[best], "videos": len(videos), "tried": len(tried)}


def _asked(lm: Any, videos: Sequence[tuple[Any, str]], batch: int) -> list[Answer]:
    pairs = [(lm.open("", same=video), question) for video, question in videos]
    found = (lm.answer(pairs[i : i + batch], max_new_tokens=1) for i in range(0, len(pairs), batch))
    return [answer for part in found for answer in part]
