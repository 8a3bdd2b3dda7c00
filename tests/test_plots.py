"""Plots are SVG that fits into a page: well formed, in the page's colour, the same each time."""

from xml.etree import ElementTree

from langdc.plots import accuracy_against_tokens, colour, kind_bars, tokens_against_density


def _texts(svg: str) -> str:
    return " ".join(
        element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    )


def test_accuracy_against_tokens_shows_every_row():
    svg = accuracy_against_tokens(["a <b>", "c"], [30, 512], [0.9, 0.5], [0.85, 0.4], [0.95, 0.6], 0.2)
    assert "a <b>" in _texts(svg) and "512" in _texts(svg) and "majority answer" in _texts(svg)
    assert svg.startswith("<svg") and "currentColor" in svg and "#010203" not in svg
    assert colour(0) in svg and colour(1) in svg
    assert svg == accuracy_against_tokens(["a <b>", "c"], [30, 512], [0.9, 0.5], [0.85, 0.4], [0.95, 0.6], 0.2)


def test_tokens_against_density_names_its_levels_and_row():
    svg = tokens_against_density('row "x" & y', 3, [0, 0, 1, 4, 4], [1, 2, 3, 12, 13])
    assert {"0", "1", "4"} <= set(_texts(svg).split())
    assert 'aria-label="Tokens per segment against density: row &quot;x&quot; &amp; y"' in svg
    ElementTree.fromstring(svg)


def test_bars_take_the_colour_of_their_row():
    svg = kind_bars(["colour_of_shape"], {"late row": [0.5]}, [0.2], [4])
    assert {"colour", "shape"} <= set(_texts(svg).split()) and "late row" in _texts(svg)
    assert colour(4) in svg and colour(0) not in svg
