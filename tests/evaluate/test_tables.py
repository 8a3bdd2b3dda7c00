"""Tables and pages say what the files say."""

import csv
import hashlib
import html
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from langdc import cli
from langdc.evaluate import report
from langdc.evaluate.comparison import read_results
from langdc.evaluate.page import page
from langdc.evaluate.tables import Table, as_csv, as_markdown, citation, quantity
from langdc.plots import PALETTE
from tests.evaluate import made_up

ROWS = {
    "learned": {"right": 36, "tokens": lambda density: 4 * density, "captions": True},
    "pool": {"right": 8, "tokens": lambda density: 32, "prefill": 0.02, "failed": (0, 1)},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_up.write(tmp_path / "run", ROWS, reference="pool")


def test_figures_of_a_row(run: Path):
    learned, pool = read_results([run])
    assert learned.accuracy is not None and learned.accuracy.value == 18 / 20
    assert learned.accuracy.n == learned.accuracy.clusters == 20
    assert {kind: (share.value, share.n) for kind, share in learned.kinds.items()} == {
        "count": (0.9, 20),
        "shape": (0.9, 20),
    }
    assert learned.chance == {"count": 0.75, "shape": 0.75} and learned.target_chance == 0.75
    assert learned.density_correlation == pytest.approx(1.0)
    assert math.isnan(pool.density_correlation)
    assert learned.exact_captions.value == 0.5 and set(learned.captions) == {0, 1, 2}
    assert pool.captions == {} and len(pool.failures) == 1
    assert learned.cue_recall == 1.0 and pool.cue_recall != pool.cue_recall
    assert pool.kinds["shape"].value == 3 / 20  # the failed one was among the four right ones
    assert learned.stages["first_token"].median == pytest.approx(0.035)
    assert learned.flops == {"encode": 1e9, "prefill": 2e9, "total": 3e9}


def test_rows_are_compared_with_the_reference(run: Path):
    learned, pool = read_results([run])
    assert pool.difference is None
    assert learned.difference is not None and learned.difference.value == pytest.approx(14 / 20)
    assert learned.difference.verdict == "better"
    assert read_results([run], "learned")[1].difference.verdict == "worse"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="Did you mean 'learned'"):
        read_results([run], "learnt")


def test_only_the_same_questions_are_compared(tmp_path: Path, run: Path):
    fewer = made_up.write(tmp_path / "other", {"pool": {"right": 8, "tokens": lambda _: 8}}, videos=5)
    rows = read_results([run, fewer], "run/pool")
    assert [row.name for row in rows] == ["learned", "run/pool", "other/pool"]
    assert rows[2].difference is not None and rows[2].difference.clusters == 5
    assert rows[2].difference.value == 0
    assert rows[2].difference.verdict == "not distinguishable at n = 5 videos"


def test_markdown_holds_every_row_and_chance(run: Path):
    lines = as_markdown(read_results([run])).partition("\n\n")[0].splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert "| 90.0 |" in lines[2] and "2.5 T" in lines[2] and ": better" in lines[2]
    assert lines[4].startswith("| majority answer | 75.0 |")


def test_csv_holds_full_numbers(run: Path):
    learned, pool = csv.DictReader(io.StringIO(as_csv(read_results([run]))))
    assert float(learned["accuracy_value"]) == 0.9
    assert float(learned["accuracy_low"]) < 0.9 < float(learned["accuracy_high"])
    assert learned["difference_verdict"] == "better" and pool["difference_verdict"] == ""
    assert (pool["failed"], learned["train_steps"], pool["n_kind_shape"]) == ("1", "50", "20")


def test_an_unfinished_row_is_marked(tmp_path: Path):
    run = made_up.write(tmp_path / "run", {"half": {"right": 3, "tokens": lambda _: 1, "finished": False}}, videos=3)
    assert Table.cells(read_results([run])[0])["entry"].text == "half (unfinished)"


def test_no_rows_yet(tmp_path: Path):
    with pytest.raises(ValueError, match="no results"):
        read_results([made_up.write(tmp_path / "run", {})])


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
    rows = read_results([budgets])
    assert [row.budget_mismatch for row in rows] == [False, False, True, False]
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
    assert "equal budget" not in as_markdown([row for row in rows if not row.budget_mismatch])


def test_the_budget_is_in_the_full_numbers(budgets: Path):
    pool, _, far, keys = csv.DictReader(io.StringIO(as_csv(read_results([budgets]))))
    assert (far["budget_match"], far["budget_ratio"], far["budget_equal"]) == ("pool", "1.0625", "False")
    assert (keys["budget_measure"], pool["budget_match"], float(pool["kv_bytes"])) == ("kv_bytes", "", 6400)


def test_a_row_asked_about_fewer_videos_is_compared_on_these(budgets: Path):
    keys = read_results([budgets])[3]
    assert keys.difference is not None and keys.difference.clusters == 5
    assert keys.difference.value == pytest.approx(5 / 5 - 4 / 5)


def test_a_page_of_nothing_but_rows_apart(budgets: Path):
    rows = [row for row in read_results([budgets]) if row.budget_mismatch]
    assert "<h2>Not at an equal budget</h2>" in page(rows) and "| far |" in as_markdown(rows)


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A run with scores: one half right, one unparsed, one failed."""
    some = {(0, 0): 0.5, (1, 0): None, (2, 1): None}
    return made_up.write(
        tmp_path / "scored",
        {
            "ours": {"right": 20, "tokens": lambda _: 8, "scored": some, "failed": (3, 0), "timings": _timings(30)},
            "pool": {"right": 20, "tokens": lambda _: 16, "scored": {}},
        },
        reference="pool",
    )


def _timings(videos: int) -> list[dict]:
    """Stage "decode" takes 1, 2, 3 ... milliseconds, after one cold video; replies of 5 tokens at 40 per second."""
    about = {"type": "timing", "reply_tokens": 5, "peak_bytes": 3_000_000}
    return [
        {
            **about,
            "key": f"timing/{n}",
            "video": str(n),
            "warm": n > 0,
            "seconds": {"decode": n / 1000, "generate": 0.1},
        }
        for n in range(videos + 1)
    ]


def test_accuracy_is_the_mean_score(scored: Path):
    ours, pool = read_results([scored])
    assert ours.accuracy is not None and ours.accuracy.value == pytest.approx((10 - 0.5 - 1 - 1) / 20)
    assert ours.kinds["shape"].value == 9 / 20
    assert ours.difference is not None and ours.difference.value == pytest.approx(-2.5 / 20)
    assert (len(ours.failures), len(ours.unparsed), len(pool.unparsed)) == (1, 2, 0)
    assert Table.cells(ours)["unparsed"].text == "2" and Table.cells(ours)["failed"].text == "1"


def test_no_interval_of_scores_leaves_0_to_1(tmp_path: Path):
    some = {(number, 0): 0.9 if number else 0.1 for number in range(3)}
    made = {"a": {"right": 9, "tokens": lambda _: 1, "scored": some}}
    (row,) = read_results([made_up.write(tmp_path / "r", made, 3)])
    assert row.accuracy is not None and 0 <= row.accuracy.low < row.accuracy.high <= 1


def test_verdicts_are_corrected_over_all_entries(tmp_path: Path):
    """Six more videos right out of 20 are found alone; among many rows they are not."""
    better = {"right": 14, "tokens": lambda _: 8}
    alone = {"pool": {"right": 2, "tokens": lambda _: 8}, "row 0": better}
    many = {**alone, **{f"row {n}": {"right": 2 + n % 3, "tokens": lambda _: 8} for n in range(1, 30)}}
    one = read_results([made_up.write(tmp_path / "alone", alone, reference="pool")])[1].difference
    found = [row.difference for row in read_results([made_up.write(tmp_path / "many", many, reference="pool")])[1:]]
    assert one is not None and one.verdict == "better" and one.corrected == one.p
    first = found[0]
    assert first is not None and first.low > 0 and first.p < 0.05 < (first.corrected or 0)
    assert first.verdict == "not distinguishable at n = 20 videos"


def test_comparisons_in_the_full_numbers(run: Path):
    learned, pool = csv.DictReader(io.StringIO(as_csv(read_results([run]))))
    assert 0 < float(learned["difference_p"]) <= float(learned["difference_corrected"]) < 0.05
    assert pool["difference_p"] == pool["difference_needed"] == ""
    # 14 of 20 videos were gained and none lost: variance 0.7 * 0.3 * 20/19 per video
    gained = read_results([run])[0].difference
    assert gained is not None and gained.value == 0.7
    assert int(learned["difference_needed"]) == math.ceil(7.848879734 * (0.7 * 0.3) * 20 / 19 / 1e-4)
    assert Table.cells(read_results([run])[0])["videos to see 1 point"].text == "17 351"


def test_stages_in_the_full_numbers_and_on_the_page(scored: Path):
    ours, pool = csv.DictReader(io.StringIO(as_csv(read_results([scored]))))
    assert float(ours["seconds_decode"]) == pytest.approx(0.0155)
    assert float(ours["seconds_decode_p95"]) == pytest.approx(0.02855)
    assert (float(ours["tokens_per_second"]), ours["timed_videos"]) == (pytest.approx(40), "30")
    assert (float(ours["peak_bytes"]), pool["peak_bytes"]) == (3e6, "")
    text = page(read_results([scored]))
    shown = text.split("<h2>Cost per stage</h2>")[1].split("</section>")[0]
    assert "<td>15.5 / 28.6</td>" in shown and "<td>40.0</td>" in shown and "<td>3 MB</td>" in shown
    assert "end to end if the LLM were free" in shown and "With 1 video timed, a" in shown
    assert "bytes of accelerator memory, peak" in text


def test_the_front_is_told_and_leaves_out_rows_of_fewer_videos(tmp_path: Path):
    rows = {
        "pool": {"right": 8, "tokens": lambda _: 32},
        "near": {"right": 20, "tokens": lambda _: 32},
        "far": {"right": 40, "tokens": lambda _: 34},
        "few": {"right": 10, "tokens": lambda _: 4, "limit": 5},  # all right, and cheapest
    }
    text = page(read_results([made_up.write(tmp_path / "run", rows)]))
    text = text.split("<h2>Accuracy against cost</h2>")[1].split("</section>")[0]
    told = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert told[0] == "On the front, cheapest first: near, far."  # pool has fewer right for as many tokens
    assert ">few</text>" in text


def test_failures_and_unparsed_replies_are_listed(scored: Path, run: Path):
    text = page(read_results([scored])).split("<h2>Failures</h2>")[1].split("</section>")[0]
    failed, unparsed = text.split("<h3>Unparsed</h3>")
    assert "<td>ours</td><td>v03</td><td>1</td><td>broken</td>" in failed and "pool" not in text
    assert "<td>ours</td><td>2</td><td>5.0 %</td><td>v01/0: “1” · v02/1: “1”</td>" in unparsed
    assert "<h3>Unparsed</h3>" not in page(read_results([run]))
    quiet = page([row for row in read_results([scored]) if row.name == "pool"])
    assert "Every question was answered, and every reply could be read." in quiet


def test_a_row_can_be_cited(run: Path):
    row = read_results([run])[0]
    said = citation(row)
    assert said.startswith("learned on sample: 90.0 % (95 % interval ") and said.endswith("Command: made up")
    assert "of 20 questions about 20 videos" in said and "weights unknown, data unknown" in said
    row.header |= {"weights_sha256": {"learned": "ab" * 32, "other": "x"}, "data_sha256": "cd" * 32}
    row.header["sessions"] = [{**row.header["sessions"][0], "commit": commit} for commit in ("1", "2+", "1")]
    config = hashlib.sha256(json.dumps(row.header["config"], sort_keys=True).encode()).hexdigest()
    assert f"commit 1 and 2+, sha256 of config {config[:12]}, weights abababababab, data cdcdcdcdcdcd." in citation(row)
    assert f"<code>{html.escape(citation(row))}</code>" in page([row])


class _Strict(HTMLParser):
    """Fails on elements that are not closed in order; gathers tags and attributes."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "circle", "input"})

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
    text = page(read_results([run]))
    parser = _Strict()
    parser.feed(text)
    assert parser.stack == []
    for tag, attributes in parser.seen:
        assert tag not in ("link", "img", "iframe") and "src" not in attributes, tag
        assert not attributes.get("href", "#").startswith(("http", "//"))
    assert "url(http" not in text and "@import" not in text
    figures = [part.split("</svg>")[0] + "</svg>" for part in text.split("<figure>")[1:]]
    assert len(figures) == 5  # accuracy against three costs, kinds, and density for the one row whose tokens vary
    for figure in figures:
        assert ElementTree.fromstring(figure).tag.endswith("svg")


def test_the_page_says_what_the_files_say(run: Path):
    text = page(read_results([run]))
    assert "<h1>learned is ahead: 90.0 % of the target questions at 8 video tokens</h1>" in text
    assert "count &amp; &lt;what&gt; ?" in text and "<what>" not in text and "<ring>" not in text
    assert "Spearman rho = 1.000 over 40 segments" in text
    assert "50.0 %</strong> <small>of 40" in text
    assert "failed" in text and "by construction" in text
    assert text == page(read_results([run]))


HOSTILE = ("value", "a|b", "[/b]", "<script>alert(1)</script>", "=1+1", "$x$y", "row_kind", "accuracy %")


def test_kinds_of_any_name_are_text_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = made_up.write(tmp_path / "run", ROWS, reference="pool")
    for path in run.glob("results/*/0.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if line["type"] == "answer":
                line["kind"] = HOSTILE[int(line["video"][1:]) % len(HOSTILE)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    header = json.loads((run / "header.json").read_text())
    (run / "header.json").write_text(json.dumps({**header, "target_kinds": list(HOSTILE)}))
    assert report([str(run), "--no-frames"]) == 0
    assert "[/b]" in capsys.readouterr().out
    text = (run / "report.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    parser = _Strict()
    parser.feed(text)
    assert parser.stack == []
    table = (run / "table.md").read_text().partition("\n\n")[0].splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1 and "<script>" not in "".join(table)
    learned = next(csv.DictReader(io.StringIO((run / "table.csv").read_text())))
    assert learned["accuracy_value"] == "0.9" and learned["kind_value"] == "1.0" and learned["kind_=1+1"]


def test_no_text_in_the_csv_is_a_formula(tmp_path: Path):
    run = made_up.write(tmp_path / "=cmd" / "run", ROWS)
    other = made_up.write(tmp_path / "other" / "=1+1", ROWS)
    names = [line["entry"] for line in csv.DictReader(io.StringIO(as_csv(read_results([run, other]))))]
    assert names == ["run/learned", "run/pool", "'=1+1/learned", "'=1+1/pool"]


def test_the_headline_names_no_winner_where_there_is_none(tmp_path: Path):
    close = {"pool": {"right": 30, "tokens": lambda _: 8}, "other": {"right": 31, "tokens": lambda _: 8}}
    rows = read_results([made_up.write(tmp_path / "run", close, reference="pool")])
    assert rows[1].difference is not None and rows[1].difference.verdict.startswith("not distinguishable")
    assert "and pool cannot be told apart from it</h1>" in page(rows)


def test_a_page_before_the_first_answer(tmp_path: Path):
    run = made_up.write(tmp_path / "run", {"new": {"right": 0, "tokens": lambda _: 1, "finished": False}}, videos=0)
    assert "No question has been answered yet." in page(read_results([run]))
    assert "new (unfinished)" in as_markdown(read_results([run]))


def test_of_many_rows_the_reference_and_those_on_a_front_are_named(tmp_path: Path):
    many = {f"row {n}": {"right": 10 + n % 7, "tokens": lambda _, n=n: 8 + n} for n in range(len(PALETTE) + 4)}
    run = made_up.write(tmp_path / "run", many, reference="row 19")
    text = page(read_results([run])).split("<h2>Accuracy against cost</h2>")[1]
    plot = text.split("</svg>")[0]
    assert "row 19<" in plot and "row 0<" in plot and "row 6<" in plot  # the reference; cheapest, and best for it
    assert "row 7<" not in plot and "those on a front and the reference are coloured" in text
    few = made_up.write(tmp_path / "few", dict(list(many.items())[: len(PALETTE)]), reference="row 1")
    assert "row 7<" in page(read_results([few])).split("<h2>Accuracy against cost</h2>")[1].split("</svg>")[0]


DAMAGED = {
    "header.json": [
        "[]", "null", '{"entries": 3}', '{"entries": ["x"]}', '{"entries": [{"name": "pool"}]}', '{"entries": []}',
        '{"entries": [{"name": 3}], "sessions": [{"commit": null}]}', '{"entries": [], "sessions": []}',
        '{"entries": [], "sessions": [{"commit": null}], "config": {"reference": null}, "training": {}}',
    ],
    "results/pool/0.jsonl": [
        "{}", '{"key": 3}', '{"type": "answer"}', '{"key": "z"}', '{"key": "z", "type": "answer"}',
        '{"key": "z", "type": ["answer"]}', '{"key": "z", "type": "video", "video": "v"}',
        '{"key": "z", "type": "timing", "warm": true, "seconds": 3}', '{"key": "z", "type": "budget"}',
    ],
    "sessions/0.jsonl": ['{"key": "z", "type": "session", "seconds": 3}'],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, each) for name, known in DAMAGED.items() for each in known])
def test_a_damaged_folder_is_named(run: Path, capsys: pytest.CaptureFixture[str], name: str, content: str):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(f"{(run / name).read_text() if name.startswith('results') else ''}{content}\n")
    assert cli.main(["report", str(run), "--no-frames"]) == 2
    assert f"{run / name}" in capsys.readouterr().err
    assert not (run / "report.html").exists()
