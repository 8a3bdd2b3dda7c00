"""Plots as SVG text for a page: transparent, in the page's own text colour, the same bytes for the same figures."""

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

PALETTE = (
    "#3b82f6",
    "#f59e0b",
    "#10b981",
    "#ef4444",
    "#8b5cf6",
    "#ec4899",
    "#14b8a6",
    "#84cc16",
    "#a16207",
    "#64748b",
    "#7dd3fc",
    "#9f1239",
    "#fdba74",
    "#4d7c0f",
    "#c4b5fd",
    "#0f766e",
)
DISCRETE = 12  # up to this many different values each get a tick
WIDE = 4  # costs that differ by more than this factor are shown on a log scale
INK = "#010203"  # a colour nothing else uses: becomes the page's text colour
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names are no formulas
    **dict.fromkeys(("svg.fonttype", "figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "font.size": 11,
    "grid.alpha": 0.12,
}


def _colour(number: int) -> str:
    """The colour of the run with this index, the same on every plot."""
    return PALETTE[number % len(PALETTE)]


def _draw(width: float, height: float, draw: Any, name: str) -> str:
    """Run `draw(axes)` and return the SVG; `name` is read out in its place and keeps ids of several plots apart."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        text = io.StringIO()
        with warnings.catch_warnings(action="ignore"):  # the browser's fonts have more letters than matplotlib's
            canvas.print_svg(text, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg.replace(INK, "currentColor"))
    svg = re.sub(r' (width|height)="[^"]*"', "", svg, count=2)  # of the whole drawing, which the page decides
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(name)}" ', 1)


@dataclass(frozen=True)
class Point:
    """A run on a plot: its index for the colour (None: grey, unnamed), cost, and accuracy (0 to 1) with interval."""

    name: str
    number: int | None
    cost: float
    value: float
    low: float
    high: float


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices of the Pareto front, lowest cost first; equal entries all stay."""
    chosen: list[int] = []
    for index in sorted(range(len(costs)), key=lambda n: (costs[n], -values[n])):
        best = chosen[-1] if chosen else index
        if values[index] > values[best] or (costs[index], values[index]) == (costs[best], values[best]):
            chosen.append(index)
    return chosen


def accuracy_against(cost: str, points: Sequence[Point], ahead: Sequence[Point], chance: float) -> str:
    """Accuracy of each run against a `cost`, with a line through those `ahead`. Costs far apart are on a log scale."""

    def draw(axes: Any) -> None:
        axes.axhline(100 * chance, color=INK, linestyle=":", linewidth=1)
        across = axes.get_yaxis_transform()
        axes.text(0.99, 100 * chance + 1, "majority answer", transform=across, ha="right", va="bottom", size=9)
        line = [point.cost for point in ahead], [100 * point.value for point in ahead]
        axes.plot(*line, color=INK, alpha=0.45, linewidth=1.5, zorder=1)
        for point in sorted(points, key=lambda point: point.number is not None):  # named ones are drawn on top
            style: dict[str, Any] = {"color": INK, "alpha": 0.2}
            if point.number is not None:
                style = {"color": _colour(point.number), "label": point.name}
            reach = [[100 * (point.value - point.low)], [100 * (point.high - point.value)]]
            axes.errorbar([point.cost], [100 * point.value], yerr=reach, fmt="o", capsize=3, **style)
        costs = [point.cost for point in points]
        if max(costs) > WIDE * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        units = EngFormatter()
        axes.xaxis.set_major_formatter(lambda x, _: units(x) if abs(x) >= 1000 else f"{x:g}")
        axes.margins(x=0.15)
        axes.set_ylim(0, 103)
        axes.set_xlabel(cost)
        axes.set_ylabel("target questions answered right, %")
        if any(point.number is not None for point in points):
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10)

    return _draw(9, 4.2, draw, f"Accuracy against {cost}")


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], whole: float | None, chance: float) -> str:
    """Accuracy (0 to 1) by the share that is kept, on a log scale: a line of (share, accuracy) points for each name.

    `whole`: the uncompressed accuracy. When the palette's colours are used up, they are used again for dashed lines.
    """

    def draw(axes: Any) -> None:
        levels = [("majority answer", chance), *([("uncompressed", whole)] if whole is not None else [])]
        for name, level in levels:
            axes.axhline(100 * level, color=INK, linestyle=":", linewidth=1)
            axes.text(0.01, 100 * level + 1, name, transform=axes.get_yaxis_transform(), va="bottom", size=9)
        for number, (name, points) in enumerate(lines.items()):
            shares, values = zip(*sorted(points), strict=True)
            dashes = "-" if number < len(PALETTE) else "--"
            axes.plot(
                shares,
                [100 * value for value in values],
                dashes,
                color=_colour(number),
                marker="o",
                markersize=3,
                label=name,
            )
        axes.set_xscale("log")
        shares = sorted({share for points in lines.values() for share, _ in points})
        axes.set_xticks(shares, [f"{100 * share:g} %" for share in shares])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(0, 103)
        axes.set_xlabel("share of the tokens, rows or keys that is kept")
        axes.set_ylabel("target questions answered right, %")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8, ncols=1 + (len(lines) > 16))

    return _draw(11, 4.6, draw, "Accuracy by share kept")


def calibration(
    name: str,
    number: int,
    measure: str,
    segments: tuple[Sequence[float], Sequence[int]],
    means: Sequence[tuple[float, float, float, float]],
) -> str:
    """Tokens of each segment against its richness (`segments`: richness, tokens), and `means` of bins with intervals. A
    mean is (richness, tokens, low, high).
    """
    rich, count = (np.asarray(values, dtype=float) for values in segments)

    def draw(axes: Any) -> None:
        levels = np.unique(rich)
        rng = np.random.default_rng(0)
        # jitter, so that equal points stay visible
        spacing = np.diff(levels).min() if 1 < len(levels) <= DISCRETE else 0.0
        across, up = rng.uniform(-0.2, 0.2, (2, len(rich)))
        axes.scatter(rich + spacing * across, count + up, s=10, color=_colour(number), alpha=0.3, linewidths=0)
        centre, tokens, low, high = (np.array(column) for column in zip(*means, strict=True))
        reach = np.stack([tokens - low, high - tokens]).clip(min=0)
        axes.errorbar(centre, tokens, yerr=reach, color=INK, marker="o", markersize=4, capsize=3, linewidth=1.5)
        if len(levels) <= DISCRETE:
            axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.set_ylim(bottom=-0.5)
        axes.set_xlabel(f"{measure} of the segment")
        axes.set_ylabel("tokens of the segment")

    return _draw(5.5, 3.6, draw, f"Tokens per segment against {measure}: {name}")


def kind_bars(
    kinds: Sequence[str], rows: Mapping[str, Sequence[float]], chance: Sequence[float], numbers: Sequence[int]
) -> str:
    """Accuracy (0 to 1) per category of question, a bar per run, and a line at the majority answer's."""

    def draw(axes: Any) -> None:
        at = np.arange(len(kinds))
        width = 0.8 / max(len(rows), 1)
        for place, ((name, values), number) in enumerate(zip(rows.items(), numbers, strict=True)):
            left = at - 0.4 + place * width + width / 2
            axes.bar(left, 100 * np.asarray(values), width * 0.92, color=_colour(number), label=name)
        axes.hlines(100 * np.asarray(chance), at - 0.42, at + 0.42, color=INK, linestyle=":", label="majority answer")
        axes.set_xticks(at, [kind.replace("_", "\n") for kind in kinds])
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0, 103)
        axes.set_ylabel("answered right, %")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10)

    return _draw(11, 3.8, draw, "Accuracy per kind of question")
