"""The report as one HTML file that needs nothing else: style, script and plots are in it; `page.html` is its template.

No text of a user or a model is markup in it (`langdc.text.render`); only plots are marked as safe.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from markupsafe import Markup

from langdc import plots
from langdc.evaluate.adaptive import Adaptive, Pictures
from langdc.evaluate.notes import notes
from langdc.evaluate.results import Result
from langdc.evaluate.tables import OVER_SEEDS, Table, citation, quantity
from langdc.text import render

PLOTTED = 3
"""Entries with adaptive budgets that are drawn where none writes captions."""
COSTS: dict[str, Callable[[Result], float]] = {
    "video tokens the language model reads, mean per video": lambda one: one.tokens.value if one.tokens else 0.0,
    "milliseconds to the first token, median": lambda one: (
        1000 * one.stages["first_token"].median if one.stages else 0.0
    ),
    "bytes that the KV cache holds when a reply begins, mean": lambda one: one.kv_bytes,
    "bytes of accelerator memory, peak": lambda one: one.peak_bytes,
}


STAGES = {
    "read": "read features",
    "select": "choose frames",
    "decode": "decode",
    "preprocess": "preprocess",
    "encode": "encode",
    "saliency": "encoder attention",
    "compress": "compress",
    "prefill": "prefill",
    "generate": "generate",
    "first_token": "to first token",
    "total": "end to end",
    "without_llm": "end to end if the LLM were free",
}


def page(results: Sequence[Result], pictures: Callable[[Result], Pictures] | None = None) -> str:
    """The whole page. `pictures`: frames of an entry's videos; without, cases are described in words alone."""
    equal, apart = Table.by_budget(results)
    answered = [result for result in results if result.answers]
    known = {stage for result in results for stage in result.stages}
    order = [*(stage for stage in STAGES if stage in known), *sorted(known - STAGES.keys())]
    failures = Counter(
        (r.name, one["video"], one["reason"] or "no reason given") for r in answered for one in r.failures
    )
    return render(
        "langdc",
        "evaluate/page.html",
        quantity=quantity,
        headline=_headline(results),
        results=results,
        largest=max(results, key=lambda result: len(result.answers)),
        captioned=[result for result in results if result.exact_captions.n],
        notes=notes(results),
        equal=equal,
        apart=apart,
        seeds=Table.over_seeds(results),
        about_seeds=OVER_SEEDS,
        curves=[(Markup(svg), model) for model, svg in curves(results)],
        costs=_costs(results),
        stages={stage: STAGES.get(stage, stage) for stage in order},  # those that took time, with their headings
        loops=[text for text in dict.fromkeys(one.loop_cost for one in results) if text],
        kinds=_kinds(results),
        adaptive=_adaptive(results, pictures),
        replies=[{line["key"]: line for line in result.answers} for result in results],
        answered=answered,
        failures=[[name, video, count, reason] for (name, video, reason), count in failures.items()],
        citations=list(map(citation, results)),
        headers=[
            (
                yaml.safe_dump(header["config"], sort_keys=False, allow_unicode=True),
                json.dumps({k: v for k, v in header.items() if k != "config"}, indent=1, ensure_ascii=False),
            )
            for header in {id(one.header): one.header for one in results}.values()
        ],
    )


def _headline(results: Sequence[Result]) -> str:
    # an entry at another budget, or asked about other videos, is ahead of nobody
    answered = [r for r in results if r.accuracy and not r.budget_mismatch and not r.settings.get("limit")]
    if not answered:
        unscored = any(result.answers and not result.scored for result in results)
        return "No question has an answer to compare with" if unscored else "No question has been answered yet."
    best = max(answered, key=lambda result: result.accuracy.value if result.accuracy else 0)
    assert best.accuracy is not None
    name = best.name + (f" ({best.shown_flag})" if best.shown_flag else "")
    tokens = f" at {best.tokens.value:.0f} video tokens" if best.tokens else ""
    share = f"{100 * best.accuracy.value:.1f} % of the target questions{tokens}"
    reference = next((result for result in answered if result.difference is None), best)
    if best.difference is not None and best.difference.verdict != "better":
        return f"{name} answers {share}, and {reference.name} cannot be told apart from it"
    return f"{name} is ahead: {share}"


def _costs(results: Sequence[Result]) -> dict[str, Any]:
    """Plots of accuracy against each cost that is known, each with the names on its Pareto front."""
    spent = {cost: [of(result) for result in results] for cost, of in COSTS.items()}
    fronts = {cost: _front(results, values) for cost, values in spent.items()}
    shown = list(range(len(results)))
    if len(results) > len(plots.PALETTE):  # the reference and those on a front have colours
        reference = [index for index, one in enumerate(results) if one.difference is None and one.accuracy is not None]
        shown = list(dict.fromkeys([*reference[:1], *(index for front in fronts.values() for index in front)]))
    colours = {index: place for place, index in enumerate(shown)}
    found = []
    for cost, values in spent.items():
        points = {
            index: plots.Point(result.name, colours.get(index), value, accuracy.value, accuracy.low, accuracy.high)
            for index, (result, value) in enumerate(zip(results, values, strict=True))
            if value > 0 and (accuracy := result.accuracy) is not None
        }
        if points:
            ahead = [points[index] for index in fronts[cost]]
            chance = results[next(iter(points))].target_chance
            svg = Markup(plots.accuracy_against(cost, list(points.values()), ahead, chance))
            found.append((svg, ", ".join(point.name for point in ahead)))
    return {"plots": found, "all_named": len(colours) == len(results)}


def curves(results: Sequence[Result]) -> list[tuple[str, str]]:
    """A plot for each model and task with methods at several budgets: the model's name, and SVG text."""
    groups: dict[str, list[tuple[Result, float]]] = defaultdict(list)
    for result in results:
        if result.accuracy is not None:
            groups[json.dumps(result.conditions)].append((result, result.accuracy.value))
    drawn = []
    for group in groups.values():
        lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for result, accuracy in group:
            if result.keep is not None and result.share is not None and not result.above_budget:
                lines[result.name.removesuffix(f" {100 * result.keep:g}%")].append((result.share, accuracy))
        lines = {name: points for name, points in lines.items() if len(points) > 1}
        whole = [accuracy for one, accuracy in group if one.parts == {"compressor": {"name": "identity"}}]
        if lines:
            first = group[0][0]
            svg = plots.curves(lines, next(iter(whole), None), first.target_chance)
            drawn.append((str(first.settings["model"]), svg))
    return drawn


def _front(results: Sequence[Result], costs: Sequence[float]) -> list[int]:
    """The indices of the entries on the Pareto front of a cost, of those that were asked about all videos."""
    whole = [n for n, one in enumerate(results) if costs[n] > 0 and one.accuracy and not one.settings.get("limit")]
    values = [accuracy.value for n in whole if (accuracy := results[n].accuracy)]
    return [whole[place] for place in plots.front([costs[n] for n in whole], values)]


def _kinds(results: Sequence[Result]) -> dict[str, Any] | None:
    """Accuracy by kind of question, and a plot of it unless there are more entries than colours."""
    longest = max(results, key=lambda result: len(result.kinds))
    kinds, chance = list(longest.kinds), list(longest.chance.values())
    if not kinds:
        return None
    shown = {index: one for index, one in enumerate(results) if one.answers}
    shares = {one.name: [one.kinds[k].value if k in one.kinds else 0.0 for k in kinds] for one in shown.values()}
    drawn = len(shown) <= len(plots.PALETTE)
    plot = Markup(plots.kind_bars(kinds, shares, chance, list(shown))) if drawn else None
    return {"kinds": kinds, "plot": plot, "shares": {**shares, "majority answer": chance}}


def _adaptive(results: Sequence[Result], pictures: Callable[[Result], Pictures] | None) -> dict[str, Any] | None:
    """Entries whose segments get different numbers of tokens, those to draw with plots and cases."""
    found = [(index, one) for index, result in enumerate(results) if (one := Adaptive.of(result)) is not None]
    writers = [(index, one) for index, one in found if any(video.get("captions") for video in one.result.videos)]
    shown = [(one, *_drawn(one, index, pictures)) for index, one in writers or found[:PLOTTED]]
    names = list(dict.fromkeys(measure.name for _, one in found for measure in one.measures))
    return {"names": names, "entries": [one for _, one in found], "shown": shown} if found else None


def _drawn(one: Adaptive, index: int, pictures: Callable[[Result], Pictures] | None) -> tuple[list, dict, str]:
    """The plots of an entry, its best and worst cases with their pictures, and why pictures are missing."""
    drawn, frames = [], pictures(one.result) if pictures is not None else None
    for measure in one.measures:
        means = [(richness, tokens.value, tokens.low, tokens.high) for richness, tokens in measure.bins]
        svg = plots.calibration(one.result.name, index, measure.name, (measure.values, one.tokens), means)
        drawn.append((Markup(svg), measure))
    titles = {"Where tokens follow richness best": False, "Where they follow it least": True}
    cases = {
        title: [(case, frames.of(case) if frames is not None else None) for case in one.cases(worst)]
        for title, worst in titles.items()
    }
    return drawn, cases, frames.missing if frames is not None else ""
