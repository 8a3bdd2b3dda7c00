"""Sentences beside a table: which controls it lacks, whether it reproduces published scores, who judged."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from langdc.evaluate.controls import UNIFORM
from langdc.evaluate.published import MISSED, ReproductionCheck
from langdc.evaluate.results import Result

UNCOMPRESSED, CAPTIONS = "the uncompressed model", "the decoded captions as text"


def notes(results: Sequence[Result]) -> list[str]:
    """Sentences for every output."""
    return [
        *_unscored(results),
        *_missing_controls(results),
        *_above_budget(results),
        *_calibration(results),
        *_judges(results),
    ]


def _unscored(results: Sequence[Result]) -> Iterator[str]:
    """How many questions have no answer."""
    answers = max((result.answers for result in results), key=len)
    if missing := sum(not line["expected"].strip() for line in answers):
        rest = "accuracy is of the others" if missing < len(answers) else "so there is no accuracy"
        yield (
            f"{missing} of {len(answers)} questions have no answer and are not scored; {rest}. The replies to hand in "
            "are in the folder submission beside the answers."
        )


def _compressor(settings: dict) -> dict:
    return settings["compressor"] or {}


def _is_uniform(settings: dict, by: str, control: str) -> bool:
    found = _compressor(settings)
    return settings["control"] == control or (found.get("name") == "uniform" and found.get("by", "frames") == by)


AT_A_BUDGET: dict[str, Callable[[dict], bool]] = {
    "random tokens": lambda settings: (
        _compressor(settings).get("name") == "random" or (settings["control"] or "").startswith("random_tokens")
    ),
    "fewer frames": lambda settings: _is_uniform(settings, "frames", "uniform_frames"),
    **{name.replace("_", " "): partial(_is_uniform, by=by, control=name) for name, by in UNIFORM.items()},
}
"""Controls that need an entry at every budget, and how an entry's settings show them."""


def _own(result: Result) -> dict:
    """What is known of the compressor that an entry's model was trained with."""
    return (result.header.get("own_compressors") or {}).get(result.settings["name"]) or {"name": "unknown"}


def _is_uncompressed(result: Result) -> bool:
    settings, own = result.settings, _own(result)
    if settings["control"] or any(settings.get(part) for part in ("layers", "kv", "frames")):
        return False
    name = _compressor(settings).get("name")
    return name == "identity" or (name is None and (own["name"] in (None, "identity") or own.get("grid", False)))


def missing_controls(results: Sequence[Result]) -> list[str]:
    """The controls that a table lacks, by name; of those that need an entry at every budget, at which ones."""
    found = [] if any(map(_is_uncompressed, results)) else [UNCOMPRESSED]
    methods = [one for one in results if not any(is_control(one.settings) for is_control in AT_A_BUDGET.values())]
    budgets = sorted({one.keep for one in methods if one.keep is not None and one.keep < 1})
    for name, is_control in AT_A_BUDGET.items():
        there = [one.keep for one in results if is_control(one.settings)]
        missing = [keep for keep in budgets if keep not in there]
        if not there:
            found.append(name)
        elif missing:
            found.append(f"{name} at {', '.join(f'{100 * keep:g} %' for keep in missing)}")
    writes = any(_own(result).get("writes") and not result.settings["control"] for result in results)
    if writes and not any(result.settings["control"] == "caption_text" for result in results):
        found.append(CAPTIONS)
    return found


def _missing_controls(results: Sequence[Result]) -> Iterator[str]:
    found = missing_controls(results)
    if not found:
        return
    headers = {id(result.header): result.header for result in results}.values()
    sweeps = [header["config"].get("sweep") for header in headers]
    begun = {(id(result.header), result.settings["name"]) for result in results}
    if any((id(header), entry["name"]) not in begun for header in headers for entry in header["entries"]):
        why = "Some entries are not asked yet."
    elif any(sweep is not None and not sweep["controls"] for sweep in sweeps):
        why = "The settings leave them out (sweep.controls: false)."
    else:
        why = "A sweep adds what it can; entries that are listed one by one get none, so list them, too."
    yield (
        f"Controls missing from this table: {'; '.join(found)}. Without them it is open whether a method is better "
        f"than what needs no method. {why}"
    )


def _above_budget(results: Sequence[Result]) -> Iterator[str]:
    """Which methods keep more than their budget."""
    above = [f"{result.name} ({result.above_budget})" for result in results if result.above_budget]
    if above:
        yield f"Above their budget, so not compared with random and on no curve: {', '.join(above)}."


def _calibration(results: Sequence[Result]) -> Iterator[str]:
    """What the published scores say of a table; that there are none is said once."""
    checked: dict[tuple[int, ReproductionCheck], list[str]] = {}
    for result in results:
        if result.check is not None:
            others = checked.setdefault((id(result.header), result.check), [])
            if result.settings["name"] != result.check.entry:
                others.append(result.name)
    for (_, check), others in checked.items():
        text = f"{(check.flag or 'calibrated').capitalize()}. {check.summary}"
        if check.flag == MISSED and check.measured is not None:
            text += f": missed by {abs(check.measured - check.score):.1f} points"
        yield f"{text}." + (f" Therefore {check.flag}: {', '.join(others)}." if check.flag and others else "")
    without = [result.name for result in results if result.check is None]
    if without:
        which = "these figures" if len(without) == len(results) else f"the figures of {', '.join(without)}"
        yield f"No published score is set for {which} (published), so nothing says whether they agree with one."


def _judges(results: Sequence[Result]) -> Iterator[str]:
    """Who judged, and how many answers still wait."""
    waiting = Counter[str]()
    for result in results:
        if result.verdicts is not None:
            waiting[result.header["judge"]["model"]] += result.unjudged
    for name, count in waiting.items():
        note = f"Judged by {name}: the share of yes, and the mean score from 0 to 5. Never compare across judges."
        more = f" {count} answers are not judged yet and count as wrong there; start the evaluation again."
        yield note + (more if count else "")
