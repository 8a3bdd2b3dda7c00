"""Reads evaluation folders as results: one per entry, compared with a reference and with random tokens or keys."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from langdc.evaluate import statistics
from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.judge import Verdict
from langdc.evaluate.published import ReproductionCheck
from langdc.evaluate.results import Result, files_of, strata_of
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
    configured = (folder.header["config"]["reference"] for folder in folders)
    wanted = reference or next(filter(None, configured), None)
    base = next((result for result in results if wanted in (result.name, result.settings["name"])), None)
    if base is not None:
        for result, difference in _compared([(result, base) for result in results if result is not base]):
            result.difference = difference
    elif reference is not None:  # the config's may not have been evaluated yet
        hint = nearest(reference, [result.name for result in results])
        raise ValueError(f"The reference {reference!r} is no entry.{hint}")
    pairs = [(result, control) for result in results if (control := _random_of(result, results)) is not None]
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


def _compared(pairs: Sequence[tuple[Result, Result]]) -> Iterator[tuple[Result, Difference]]:
    """Of every pair the first, with its paired difference to the second on target questions that both were asked.

    p values are corrected for the number of pairs that share a question.
    """
    shared = {}
    for one, other in pairs:
        asked = {_question(line): line["score"] for line in other.targets}
        scores = [(line, asked[_question(line)]) for line in one.targets if _question(line) in asked]
        if scores:
            shared[one] = scores
    resamples = max(RESAMPLES, RESAMPLES_PER_ENTRY * len(shared))
    found = []
    for result, scores in shared.items():
        lines = [line for line, _ in scores]
        ours, theirs = [line["score"] for line in lines], [score for _, score in scores]
        strata = strata_of(result.header, lines)
        found.append(statistics.paired_difference(ours, theirs, files_of(lines), resamples=resamples, strata=strata))
    yield from zip(shared, statistics.corrected(found), strict=True)


def _random_of(result: Result, results: Sequence[Result]) -> Result | None:
    """The entry with random tokens, or random keys beside a method inside the language model, of the same model and
    budget; None where there is none.
    """
    parts = _parts(result)
    last = next(reversed(parts), None)
    if last is None or (keep := parts[last].get("keep")) is None:
        return None
    wanted = {"compressor" if last == "compressor" else "kv": {"name": "random", "keep": keep}}
    alike = [
        one for one in results if one is not result and _parts(one) == wanted and _setting(one) == _setting(result)
    ]
    return next(iter(alike), None)


def _parts(result: Result) -> dict[str, dict]:
    """Its methods by site, in the order in which they act."""
    given = result.settings
    return {site: given[site] for site in ("compressor", "layers", "kv") if given.get(site)}


def _setting(result: Result) -> list:
    """What has to be the same for two methods to be compared."""
    return [result.header["config"]["task"], *(result.settings.get(name) for name in ("model", "backbone", "limit"))]


def _question(line: dict) -> tuple[str, str, str]:
    return line["key"], line["question"], line["expected"]
