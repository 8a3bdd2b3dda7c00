"""Plots are SVG that fits into a page: well formed, in the page's colour, the same each time."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from langdc.plots import Point, _colour, accuracy_against, calibration, front, kind_bars


def _texts(svg: str) -> str:
    return "|".join(
        element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    )


TWO = [Point("a <b>", 5, 30, 0.9, 0.85, 0.95), Point("c", 1, 512, 0.5, 0.4, 0.6)]


def test_accuracy_against_a_cost_shows_every_row():
    svg = accuracy_against("video tokens", TWO, TWO[:1], 0.2)
    said = _texts(svg)
    assert {"a <b>", "c", "500", "majority answer", "video tokens"} <= set(said.split("|"))
    assert svg.startswith("<svg") and "currentColor" in svg and "#010203" not in svg
    assert _colour(5) in svg and _colour(1) in svg and _colour(0) not in svg
    assert svg == accuracy_against("video tokens", TWO, TWO[:1], 0.2)


def test_intervals_and_front_are_where_the_figures_are():
    """Heights of the drawing are linear in accuracy, so known accuracies give those of the bar and the line."""
    points = [Point("low", 0, 2, 0.2, 0.1, 0.4), Point("high", 1, 8, 0.8, 0.7, 0.9), Point("off", 2, 16, 0.5, 0.5, 0.5)]
    svg = accuracy_against("cost", points, points[:2], 0.0)
    lines = [np.array(re.findall(r"[ML] (\S+) (\S+)", path), dtype=float) for path in re.findall(r'd="([^"]+)"', svg)]
    (line,) = [path for path in lines if len(path) == 2 and path[0, 0] != path[1, 0] and path[0, 1] != path[1, 1]]
    per_point = (line[0, 1] - line[1, 1]) / 60
    bars = [path for path in lines if len(path) == 2 and path[0, 0] == path[1, 0] == line[0, 0]]
    assert any(abs(path[0, 1] - path[1, 1]) == pytest.approx(30 * per_point, rel=1e-3) for path in bars)


def test_costs_close_together_are_not_on_a_log_scale():
    """Equal steps of cost are equal steps on the page when they lie close, and shrink when they lie far apart."""

    def steps(*costs: float) -> np.ndarray:
        points = [Point(str(n), n, cost, 0.5, 0.5, 0.5) for n, cost in enumerate(costs)]
        svg = accuracy_against("cost", points, points, 0.0)
        lines = [re.findall(r"[ML] (\S+) (\S+)", path) for path in re.findall(r'd="([^"]+)"', svg)]
        (line,) = [path for path in lines if len(path) == 3 and len({y for _, y in path}) == 1]
        return np.diff([float(x) for x, _ in line])

    near, far = steps(40, 50, 60), steps(10, 60, 110)
    assert near[0] == pytest.approx(near[1]) and far[0] > 2 * far[1]
    large = [Point("a", 0, 1500, 0.5, 0.4, 0.6), Point("b", 1, 15_000_000, 0.5, 0.4, 0.6)]
    assert {"10 k", "1 M"} <= set(_texts(accuracy_against("bytes", large, [], 0.0)).split("|"))


def test_no_plot_hides_the_page_behind_it():
    assert "#ffffff" not in accuracy_against("cost", TWO, TWO[:1], 0.2).lower()


def test_a_point_without_a_number_is_grey_and_has_no_name():
    points = [Point("plain", None, 1.0, 0.5, 0.4, 0.6), Point("named", 7, 2.0, 0.6, 0.5, 0.7)]
    svg = accuracy_against("cost", points, [points[1]], 0.2)
    assert "named" in _texts(svg) and "plain" not in _texts(svg)
    assert _colour(7) in svg and not any(_colour(n) in svg for n in range(7))
    assert "plain" not in _texts(accuracy_against("cost", points[:1], [], 0.2))


@pytest.mark.parametrize(
    ("costs", "values", "expected"),
    [
        ([], [], []),
        ([4, 1, 2], [0.9, 0.3, 0.6], [1, 2, 0]),
        ([1, 2, 3], [0.5, 0.5, 0.4], [0]),  # as good for less
        ([1, 1, 2], [0.4, 0.5, 0.6], [1, 2]),  # better for as much
        ([1, 1, 1], [0.5, 0.5, 0.1], [0, 1]),  # equals both stay
    ],
)
def test_front_by_hand(costs: list[float], values: list[float], expected: list[int]):
    assert front(costs, values) == expected


def test_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    for _ in range(100):
        costs, values = rng.integers(1, 8, 15).tolist(), rng.integers(0, 8, 15).tolist()

        def beaten(n: int, costs: list[int] = costs, values: list[int] = values) -> bool:
            return any(
                costs[m] <= costs[n] and values[m] >= values[n] and (costs[m], values[m]) != (costs[n], values[n])
                for m in range(len(costs))
            )

        assert sorted(front(costs, values)) == [n for n in range(15) if not beaten(n)]


def test_calibration_names_its_levels_and_row_and_draws_means_where_they_are():
    means = [(0.0, 1.5, 1.0, 2.0), (1.0, 3.0, 2.5, 3.5), (4.0, 12.5, 12.0, 13.0)]
    svg = calibration('row "x" & y', 3, "density", ([0, 0, 1, 4, 4], [1, 2, 3, 12, 13]), means)
    assert {"0", "1", "4", "density of the segment"} <= set(_texts(svg).split("|"))
    assert 'aria-label="Tokens per segment against density: row &quot;x&quot; &amp; y"' in svg
    lines = [np.array(re.findall(r"[ML] (\S+) (\S+)", path), dtype=float) for path in re.findall(r'd="([^"]+)"', svg)]
    (line,) = [path for path in lines if len(path) == 3 and len({*path[:, 1]}) == 3]
    across, up = np.diff(line[:, 0]), -np.diff(line[:, 1])
    assert across[1] / across[0] == pytest.approx(3) and up[1] / up[0] == pytest.approx(9.5 / 1.5, rel=1e-3)


def test_bars_take_the_colour_of_their_row():
    svg = kind_bars(["colour_of_shape"], {"late row": [0.5]}, [0.2], [4])
    assert {"colour", "shape"} <= set(_texts(svg).split("|")) and "late row" in _texts(svg)
    assert _colour(4) in svg and _colour(0) not in svg
