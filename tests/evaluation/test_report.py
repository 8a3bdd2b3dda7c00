"""Tables and pages say what the files say."""

import csv
import io
import math
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from langdc.evaluation.page import page
from langdc.evaluation.report import as_csv, as_markdown, cells, quantity, read_rows
from langdc.evaluation.style import STYLE
from tests.evaluation import made_up

ROWS = {
    "learned": {"right": 36, "tokens": lambda density: 4 * density, "captions": True},
    "pool": {"right": 8, "tokens": lambda density: 32, "prefill": 0.02, "failed": (0, 1)},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_up.write(tmp_path / "run", ROWS, reference="pool")


def test_figures_of_a_row(run: Path):
    learned, pool = read_rows([run])
    assert learned.accuracy is not None and learned.accuracy.value == 18 / 20
    assert learned.accuracy.n == learned.accuracy.clusters == 20
    assert {kind: share.right for kind, share in learned.kinds.items()} == {"count": 18, "shape": 18}
    assert learned.chance == {"count": 0.75, "shape": 0.75} and learned.target_chance == 0.75
    assert learned.density_correlation == pytest.approx(1.0)
    assert math.isnan(pool.density_correlation)
    assert learned.exact_captions.value == 0.5 and set(learned.captions) == {0, 1, 2}
    assert pool.captions == {} and pool.failed == 1
    assert learned.cue_recall == 1.0 and pool.cue_recall != pool.cue_recall
    assert pool.kinds["shape"].right == 3  # the failed one was among the four right ones
    assert learned.seconds["first_token"] == pytest.approx(0.035)
    assert learned.flops == {"encode": 1e9, "prefill": 2e9, "total": 3e9}


def test_rows_are_compared_with_the_reference(run: Path):
    learned, pool = read_rows([run])
    assert pool.difference is None
    assert learned.difference is not None and learned.difference.value == pytest.approx(14 / 20)
    assert learned.difference.verdict == "better"
    assert read_rows([run], "learned")[1].difference.verdict == "worse"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="Did you mean 'learned'"):
        read_rows([run], "learnt")


def test_only_the_same_questions_are_compared(tmp_path: Path, run: Path):
    fewer = made_up.write(tmp_path / "other", {"pool": {"right": 8, "tokens": lambda _: 8}}, videos=5)
    rows = read_rows([run, fewer], "run/pool")
    assert [row.name for row in rows] == ["learned", "run/pool", "other/pool"]
    assert rows[2].difference is not None and rows[2].difference.clusters == 5
    assert rows[2].difference.value == 0
    assert rows[2].difference.verdict == "not distinguishable at n = 5 videos"


def test_markdown_holds_every_row_and_chance(run: Path):
    lines = as_markdown(read_rows([run])).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert "| 90.0 |" in lines[2] and "2.5 T" in lines[2] and ": better" in lines[2]
    assert lines[4].startswith("| majority answer | 75.0 |")


def test_csv_holds_full_numbers(run: Path):
    learned, pool = csv.DictReader(io.StringIO(as_csv(read_rows([run]))))
    assert float(learned["accuracy_value"]) == 0.9
    assert float(learned["accuracy_low"]) < 0.9 < float(learned["accuracy_high"])
    assert learned["difference_verdict"] == "better" and pool["difference_verdict"] == ""
    assert (pool["failed"], learned["train_steps"], pool["n_shape"]) == ("1", "50", "20")


def test_an_unfinished_row_is_marked(tmp_path: Path):
    run = made_up.write(tmp_path / "run", {"half": {"right": 3, "tokens": lambda _: 1, "finished": False}}, videos=3)
    assert cells(read_rows([run])[0])["row"].text == "half (unfinished)"


def test_no_rows_yet(tmp_path: Path):
    with pytest.raises(ValueError, match="no rows"):
        read_rows([made_up.write(tmp_path / "run", {})])


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (math.nan, "-"), (0, "0"), (999, "999"), (1234, "1.23 k"), (2.5e12, "2.5 T"), (1e18, "1 E")],
)
def test_quantities(number: float | None, text: str):
    assert quantity(number) == text


def _budget(ratio: float, measure: str = "tokens") -> dict:
    return {"match": "pool", "measure": measure, "ratio": ratio, "equal": abs(ratio - 1) <= 0.02}


@pytest.fixture
def budgets(tmp_path: Path) -> Path:
    """A run with a row at equal budget, one that is not, and one asked about fewer videos."""
    rows = {
        "pool": {"right": 8, "tokens": lambda density: 32},
        "near": {"right": 20, "tokens": lambda density: 32, "budget": _budget(1.0)},
        "far": {"right": 40, "tokens": lambda density: 34, "budget": _budget(1.0625)},
        "keys": {"right": 10, "tokens": lambda density: 64, "budget": _budget(1.01, "kv_bytes"), "limit": 5},
    }
    return made_up.write(tmp_path / "budgets", rows, reference="pool")


def test_rows_at_another_budget_are_printed_apart(budgets: Path):
    rows = read_rows([budgets])
    assert [row.apart for row in rows] == [False, False, True, False]
    above, below = as_markdown(rows).split("Not at an equal budget")
    assert "| far |" not in above and "| far |" in below and "1.062 of pool" in below
    assert "| near |" in above and "1.000 of pool |" in above and "| near |" not in below
    assert "| keys (first 5 videos) |" in above and "1.010 of pool (KV)" in above
    text = page(rows)
    assert "<h1>near is ahead: 50.0 %" in text  # though far, and keys on its few videos, have 100 %
    together, apart = text.split("<h2>Not at an equal budget</h2>")
    assert '<td data-value="far"' not in together and '<td data-value="far"' in apart
    parser = _Strict()
    parser.feed(text)
    assert parser.stack == []
    assert "equal budget" not in as_markdown([row for row in rows if not row.apart])


def test_the_budget_is_in_the_full_numbers(budgets: Path):
    pool, _, far, keys = csv.DictReader(io.StringIO(as_csv(read_rows([budgets]))))
    assert (far["budget_match"], far["budget_ratio"], far["budget_equal"]) == ("pool", "1.0625", "False")
    assert (keys["budget_measure"], pool["budget_match"], float(pool["kv_bytes"])) == ("kv_bytes", "", 6400)


def test_a_row_asked_about_fewer_videos_is_compared_on_these(budgets: Path):
    keys = read_rows([budgets])[3]
    assert keys.difference is not None and keys.difference.clusters == 5
    assert keys.difference.value == pytest.approx(5 / 5 - 4 / 5)


def test_a_page_of_nothing_but_rows_apart(budgets: Path):
    rows = [row for row in read_rows([budgets]) if row.apart]
    assert "<h2>Not at an equal budget</h2>" in page(rows) and "| far |" in as_markdown(rows)


class _Strict(HTMLParser):
    """Fails on elements that are not closed in order; gathers tags and attributes."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack and self.stack.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_the_page_stands_alone_and_is_well_formed(run: Path):
    text = page(read_rows([run]))
    parser = _Strict()
    parser.feed(text)
    assert parser.stack == []
    for tag, attributes in parser.seen:
        assert tag not in ("link", "img", "iframe") and "src" not in attributes, tag
        assert not attributes.get("href", "#").startswith(("http", "//"))
    assert "url(http" not in text and "@import" not in text
    figures = [part.split("</svg>")[0] + "</svg>" for part in text.split("<figure>")[1:]]
    assert len(figures) == 3  # accuracy against tokens, kinds, and density for the one row whose tokens vary
    for figure in figures:
        assert ElementTree.fromstring(figure).tag.endswith("svg")


def test_the_page_says_what_the_files_say(run: Path):
    text = page(read_rows([run]))
    assert "<h1>learned is ahead: 90.0 % of the target questions at 8 video tokens</h1>" in text
    assert "count &amp; &lt;what&gt; ?" in text and "<what>" not in text and "<ring>" not in text
    assert "Spearman rho = 1.000 over 40 segments" in text
    assert "50.0 %</strong> <small>of 40" in text
    assert "failed" in text and "by construction" in text
    assert text == page(read_rows([run]))


def test_the_headline_names_no_winner_where_there_is_none(tmp_path: Path):
    close = {"pool": {"right": 30, "tokens": lambda _: 8}, "other": {"right": 31, "tokens": lambda _: 8}}
    rows = read_rows([made_up.write(tmp_path / "run", close, reference="pool")])
    assert rows[1].difference is not None and rows[1].difference.verdict.startswith("not distinguishable")
    assert "and pool cannot be told apart from it</h1>" in page(rows)


def test_no_rule_of_the_style_is_cut_by_a_line_end():
    """A string that goes over a line end makes browsers drop everything up to the next one."""
    assert all(line.count('"') % 2 == 0 for line in STYLE.splitlines())


def test_a_page_before_the_first_answer(tmp_path: Path):
    run = made_up.write(tmp_path / "run", {"new": {"right": 0, "tokens": lambda _: 1, "finished": False}}, videos=0)
    assert "No question has been answered yet." in page(read_rows([run]))
    assert "new (unfinished)" in as_markdown(read_rows([run]))
