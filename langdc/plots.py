"""Plots as SVG text for a page: transparent, in the page's own text colour, the same bytes for the same figures."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PALETTE = (
    "#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899", "#14b8a6", "#84cc16", "#a16207", "#64748b",
    "#7dd3fc", "#9f1239", "#fdba74", "#4d7c0f", "#c4b5fd", "#0f766e",
)  # fmt: skip
INK = "#010203"  # a colour nothing else uses: becomes the page's text colour
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "axes.axisbelow": True,
}


def colour(number: int) -> str:
    """The colour of the n-th row, on every plot the same."""
    return PALETTE[number % len(PALETTE)]


def _draw(width: float, height: float, draw: Any, name: str) -> str:
    """Run `draw(axes)` and return the SVG; `name` is read out in its place and keeps ids of several plots apart."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        text = io.StringIO()
        canvas.print_svg(text, metadata={"Date": None, "Creator": None})
    return _for_page(text.getvalue(), name)


def _for_page(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    label = name.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(
        r'<svg (.*?)width="[^"]*"', rf'<svg role="img" aria-label="{label}" \1', svg, count=1, flags=re.DOTALL
    ).replace('height="', 'data-height="', 1)


def accuracy_against_tokens(
    names: Sequence[str],
    tokens: Sequence[float],
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    chance: float,
) -> str:
    """Accuracy (0 to 1, with its interval) of each row against its video tokens, which are on a log scale."""

    def draw(axes: Any) -> None:
        axes.axhline(100 * chance, color=INK, linestyle=":", linewidth=1)
        across = axes.get_yaxis_transform()
        axes.text(0.99, 100 * chance + 1, "majority answer", transform=across, ha="right", va="bottom", size=9)
        for number, (x, y, low, high) in enumerate(zip(tokens, values, lows, highs, strict=True)):
            reach = [[100 * (y - low)], [100 * (high - y)]]
            style = {"color": colour(number), "capsize": 3, "markersize": 8}
            axes.errorbar([x], [100 * y], yerr=reach, fmt="o", label=names[number], **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.margins(x=0.15)
        axes.set_ylim(0, 103)
        axes.set_xlabel("video tokens the language model reads, mean per video")
        axes.set_ylabel("target questions answered right, %")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10)

    return _draw(9, 4.2, draw, "Accuracy against tokens per video")


def tokens_against_density(name: str, number: int, densities: Sequence[int], tokens: Sequence[int]) -> str:
    """Tokens per segment of a row at each density: a box, and every segment as a dot."""
    density, count = np.asarray(densities), np.asarray(tokens)

    def draw(axes: Any) -> None:
        levels = np.unique(density)
        boxes = [count[density == level] for level in levels]
        ink = {"color": INK}
        styles = {"boxprops": ink, "whiskerprops": ink, "capprops": ink, "medianprops": {**ink, "linewidth": 2}}
        axes.boxplot(boxes, positions=levels, widths=0.5, showfliers=False, **styles)
        across, up = np.random.default_rng(0).uniform(-0.2, 0.2, (2, len(density)))  # equal counts stay visible
        axes.scatter(density + across, count + up, s=10, color=colour(number), alpha=0.3, linewidths=0, zorder=3)
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.set_ylim(bottom=-0.5)
        axes.set_xlabel("density of the segment (cues or objects)")
        axes.set_ylabel("tokens of the segment")

    return _draw(5.5, 3.6, draw, f"Tokens per segment against density: {name}")


def kind_bars(
    kinds: Sequence[str], rows: Mapping[str, Sequence[float]], chance: Sequence[float], numbers: Sequence[int]
) -> str:
    """Accuracy (0 to 1) per kind of question, a bar per row, and a line where the majority answer would be."""

    def draw(axes: Any) -> None:
        at = np.arange(len(kinds))
        width = 0.8 / max(len(rows), 1)
        for place, ((name, values), number) in enumerate(zip(rows.items(), numbers, strict=True)):
            left = at - 0.4 + place * width + width / 2
            axes.bar(left, 100 * np.asarray(values), width * 0.92, color=colour(number), label=name)
        axes.hlines(100 * np.asarray(chance), at - 0.42, at + 0.42, color=INK, linestyle=":", label="majority answer")
        axes.set_xticks(at, [kind.replace("_", "\n") for kind in kinds])
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0, 103)
        axes.set_ylabel("answered right, %")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10)

    return _draw(11, 3.8, draw, "Accuracy per kind of question")
