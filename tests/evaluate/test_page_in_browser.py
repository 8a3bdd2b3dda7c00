"""The report page in a real browser: it opens without a complaint, sorts, filters, and asks the network for nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from eval.table import main
from tests import browser
from tests.evaluate import made_up

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a row whose tokens vary, failures, and more rows than colours."""
    rows = {
        "learned": {"right": 36, "tokens": lambda density: 4 * density, "captions": True},
        "uncompressed": {"right": 30, "tokens": lambda _: 256, "failed": (3, 0)},
        **{f"method {keep}%": {"right": 10 + keep % 17, "tokens": lambda _, k=keep: k} for keep in range(2, 40, 2)},
    }
    run = made_up.write(tmp_path_factory.mktemp("browser") / "run", rows, reference="uncompressed")
    assert main([str(run)]) == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def opened(report: Path) -> Iterator[tuple[Page, list[str]]]:
    """The page, and all that the browser complained about or fetched."""
    with browser.opened(report) as found:
        yield found


def column(page: Page, number: int) -> list[str]:
    """The texts of a column of the first table, in the order on the page, those that a filter hides left out."""
    cells = page.locator("table.sortable").first.locator(f"tbody tr:visible td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_it_opens_without_a_complaint(opened: tuple[Page, list[str]]):
    page, heard = opened
    assert page.title() == "LangDC evaluation"
    assert page.locator("h1").inner_text().startswith("learned answers 90.0 %")
    assert page.locator("figure svg").count() >= 4
    assert heard == []


def test_a_column_sorts_by_its_numbers_both_ways(opened: tuple[Page, list[str]]):
    page, heard = opened
    heads = [text.strip() for text in page.locator("table.sortable").first.locator("thead th").all_inner_texts()]
    place = heads.index("tokens/video") + 1
    before = [float(text) for text in column(page, place)]
    assert before != sorted(before) and before != sorted(before, reverse=True)
    button = page.locator("table.sortable").first.locator("thead th button").nth(place - 1)
    button.click()
    assert [float(text) for text in column(page, place)] == sorted(before, reverse=True)
    button.click()
    assert [float(text) for text in column(page, place)] == sorted(before)
    page.locator("table.sortable").first.locator("thead th button").first.click()
    assert column(page, 1) == sorted(column(page, 1), reverse=True)
    assert heard == []


def test_a_filter_leaves_the_rows_with_all_words(opened: tuple[Page, list[str]]):
    page, heard = opened
    box = page.locator("input[type=search]").first
    every = column(page, 1)
    box.fill("2% METHOD")
    left = column(page, 1)
    assert sorted(left) == ["method 12%", "method 2%", "method 22%", "method 32%"]
    assert page.locator("output").first.inner_text() == f"{len(left)} of {len(every)}"
    box.fill("no such row")
    assert column(page, 1) == []
    box.fill("")
    assert sorted(column(page, 1)) == sorted(every)
    assert heard == []


def test_links_lead_to_sections_and_details_open(opened: tuple[Page, list[str]]):
    page, heard = opened
    links = page.locator("nav a")
    titles = page.locator("section > h2").all_inner_texts()
    assert links.all_inner_texts() == titles and "Adaptive budgets" in titles
    links.get_by_text("Adaptive budgets").click()
    section = page.locator("#adaptive-budgets")
    assert section.evaluate("e => Math.abs(e.getBoundingClientRect().top) < 200")
    case = section.locator(".cases li").first
    assert not case.is_visible()
    section.locator("summary").first.click()
    assert case.is_visible() and "tokens" in case.inner_text()
    assert heard == []


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_itself_never_scrolls_sideways(opened: tuple[Page, list[str]], width: int):
    page, _ = opened
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
