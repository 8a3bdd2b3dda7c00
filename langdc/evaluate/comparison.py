"""Reads evaluation folders as results, one per entry, compared with a reference, also over seeds, and random tokens."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from langdc.evaluate import statistics
from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.judge import Verdict
from langdc.evaluate.published import ReproductionCheck
from langdc.evaluate.results import NAN, TOLERANCE, Result, files_of, strata_of
from langdc.evaluate.statistics import RESAMPLES, Difference
from langdc.registry import nearest

RESAMPLES_PER_ENTRY = 80
"""Resamples per compared entry at least; with fewer, no p value could stay small once it is corrected."""


def read_results(directories: Sequence[Path], reference: str | None = None) -> list[Result]:
    """The results of evaluations, each compared with the reference: the one named, or the first config's.

    A result whose name occurs in several folders gets its folder's name in front. Raises ValueError if there is none, a
    directory holds no evaluation, or the reference is none of the entries.
    """
    folders = [EvalFolder.read(directory, whole=True) for directory in directories]
    found = [(folder.directory.name, result) for folder in folders for result in _results_of(folder)]
    if not found:
        raise ValueError(f"There are no results in {', '.join(map(str, directories))} yet.")
    names = Counter(result.name for _, result in found)
    results = [result for _, result in found]
    for directory, result in found:
        result.name = result.name if names[result.name] == 1 else f"{directory}/{result.name}"
    methods: dict[tuple[int, str], list[Result]] = {}
    for result in sorted(results, key=lambda one: bool(one.settings.get("repeats"))):  # what is repeated comes first
        first = result.settings.get("repeats") or result.settings["name"]
        result.runs = methods.setdefault((id(result.header), first), [])
        result.runs.append(result)
    configured = (folder.header["config"]["reference"] for folder in folders)
    wanted = reference or next(filter(None, configured), None)
    base = next((result for result in results if wanted in (result.name, result.settings["name"])), None)
    if base is not None:
        for result, difference in _compared([([result], [base]) for result in results if result is not base]):
            result.difference = difference
        repeated = [result for result in results if result.repeated and base not in result.runs]
        for result, difference in _compared([(result.runs, base.runs) for result in repeated]):
            result.over_seeds = difference
    elif reference is not None:  # the config's may not have been evaluated yet
        hint = nearest(reference, [result.name for result in results])
        raise ValueError(f"The reference {reference!r} is no entry.{hint}")
    controls = [(result, control) for result in results if (control := _random_of(result, results)) is not None]
    for result, control in controls:
        result.above_budget = _excess(result, control)
    pairs = [([result], [control]) for result, control in controls if not result.above_budget]
    for result, difference in _compared(pairs):
        result.against_random = difference
    return results


def _results_of(folder: EvalFolder) -> list[Result]:
    """The results of a folder, with the judge's verdicts and the published scores they are checked against."""
    header, loop_cost = folder.header, folder.loop_cost()
    settings = {entry["name"]: entry for entry in header["entries"]}
    found = {name: Result(name, header, settings[name], folder.lines(name), loop_cost) for name in folder.names()}
    for result in found.values():
        if header.get("judge"):
            result.verdicts = Verdict.of_answers(folder.directory, header["judge"], result.lines)
        for line, verdict in zip(result.judged_answers, result.verdicts or (), strict=result.verdicts is not None):
            if line.get("judged"):  # the judge alone scores it; while it waits, it counts as wrong
                line["score"] = float(verdict is not None and verdict.right)
                line["correct"] = line["score"] == 1
    checks = ReproductionCheck.by_entry(header, {name: result.final_scores for name, result in found.items()})
    for name, result in found.items():
        result.check = checks.get(name)
    return list(found.values())


def _compared(pairs: Sequence[tuple[Sequence[Result], Sequence[Result]]]) -> Iterator[tuple[Result, Difference]]:
    """The paired difference between the methods of each pair, with the first run of the first; a method is its runs.

    Over the target questions that all these runs were asked; a method's score of a question is the mean over its runs.
    p values are corrected for the number of pairs that share a question.
    """
    shared = {}
    for pair in pairs:
        scores = [[{_question(line): line["score"] for line in run.targets} for run in runs] for runs in pair]
        lines = [line for line in pair[0][0].targets if all(_question(line) in run for runs in scores for run in runs)]
        if lines:
            shared[pair[0][0]] = lines, [[fmean(run[_question(x)] for run in runs) for x in lines] for runs in scores]
    resamples = max(RESAMPLES, RESAMPLES_PER_ENTRY * len(shared))
    found = []
    for result, (lines, (ours, theirs)) in shared.items():
        strata = strata_of(result.header, lines)
        found.append(statistics.paired_difference(ours, theirs, files_of(lines), resamples=resamples, strata=strata))
    yield from zip(shared, statistics.corrected(found), strict=True)


def _random_of(result: Result, results: Sequence[Result]) -> Result | None:
    """The entry with random tokens of the same model and budget; with random keys for a method inside the model.

    None where there is none, and for methods of several parts that drop tokens, whose last part alone has that budget.
    """
    sites = list(result.parts)
    if result.keep is None or any(_drops(result.parts[site]) for site in sites[:-1]):
        return None
    wanted = {"compressor" if sites[-1] == "compressor" else "kv": {"name": "random", "keep": result.keep}}
    others = (one for one in results if one is not result and one.conditions == result.conditions)
    return next((one for one in others if one.parts == wanted), None)


def _excess(result: Result, control: Result) -> str:
    """How much more a method keeps than the control at its budget, in words; "" if it does not."""
    inside = "layers" in result.parts or "kv" in result.parts
    kept = [one.kv_bytes if inside else one.tokens.value if one.tokens else NAN for one in (result, control)]
    if not kept[0] > (1 + TOLERANCE) * kept[1]:
        return ""
    return f"{kept[0] / kept[1]:.3g} times the {'cache' if inside else 'tokens'} of {control.name}"


def _drops(part: dict) -> bool:
    """Whether the settings of a method have a budget below all tokens."""
    return (part.get("keep") or 1) < 1 or part.get("tokens") is not None


def _question(line: dict) -> tuple[str, str, str]:
    return line["key"], line["question"], line["expected"]
