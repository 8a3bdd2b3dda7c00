"""Entries that repeat another one with other seeds: their table, and what the setting refuses and leaves alone."""

import csv
import io
import json
from pathlib import Path

import pytest

from langdc.evaluate import report, tasks
from langdc.evaluate.comparison import read_results
from langdc.evaluate.loop import evaluate
from langdc.evaluate.page import page
from langdc.evaluate.tables import OVER_SEEDS, Table, as_csv, as_markdown
from tests.evaluate import made_up, runs
from tests.evaluate.test_groups import label


def _row(right: int, tokens: int = 8, **more) -> dict:
    """Right about the first videos; a video has twice the `tokens`."""
    return {"right": 2 * right, "tokens": lambda _: tokens, **more}


ROWS = {  # out of 20 videos
    "ours": _row(16, 8, flops=2e12),
    "other 1": _row(6, repeats="other"),
    "pool": _row(4),
    "ours 1": _row(12, 12, flops=4e12, repeats="ours"),
    "pool 1": _row(8, repeats="pool"),
    "other": _row(6),
    "alone": _row(20),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_up.write(tmp_path / "run", ROWS, reference="pool")


def _lines(results) -> dict[str, dict[str, str]]:
    """What the table over seeds shows, by entry and column."""
    table = Table.over_seeds(results)
    assert table is not None and table.chance == []
    shown = [dict(zip(table.headings, (cell.text for cell in line), strict=True)) for line in table.lines]
    return {line["entry"]: line for line in shown}


def test_a_method_is_the_mean_over_its_runs(run: Path):
    label(run, "v05")
    results = read_results([run])
    lines = _lines(results)
    assert list(lines) == ["ours", "pool", "other"]
    # videos 0-3: 1 - 1, 4-7: 1 - 1/2, 8-11: 1 - 0, 12-15: 1/2 - 0, 16-19: 0 - 0
    ours, pool, other = results[0].over_seeds, results[2].over_seeds, results[5].over_seeds
    assert pool is None and ours is not None and ours.value == pytest.approx(8 / 20) and ours.verdict == "better"
    # of the second, videos 4 and 5: 1 - 1/2, 6 and 7: 0 - 1/2
    assert other is not None and other.value == 0 and other.clusters == 20
    assert ours.corrected == pytest.approx(2 * ours.p) and other.corrected == other.p  # of two rows, not of all entries
    interval = lines["ours"].pop("against reference")
    assert lines["ours"] == {
        "entry": "ours", "runs": "2", "accuracy %": "70.0", "lowest to highest": "60.0 to 80.0", "said": "100.0",
        "unsaid": "60.0", "tokens/video": "20.0", "train flops": "3 T",
    }  # fmt: skip
    assert interval == f"+40.0 ({100 * ours.low:+.1f} to {100 * ours.high:+.1f}): better"
    assert lines["pool"]["against reference"] == "-" and lines["pool"]["accuracy %"] == "30.0"
    assert lines["other"]["lowest to highest"] == "30.0 to 30.0"
    assert lines["other"]["against reference"].endswith(": not distinguishable at n = 20 videos")


def test_a_reference_that_is_a_repeat_stands_for_its_method(run: Path):
    by_name = {result.name: result for result in read_results([run], "pool 1")}
    assert by_name["pool"].over_seeds is None and by_name["pool"].difference is not None
    found = by_name["ours"].over_seeds
    assert found is not None and found.value == pytest.approx(8 / 20)


def test_a_reference_may_have_one_run(run: Path):
    by_name = {result.name: result for result in read_results([run], "alone")}
    found = by_name["pool"].over_seeds
    assert found is not None and found.value == pytest.approx((4 + 8) / 40 - 1) and found.verdict == "worse"


def test_only_questions_that_all_runs_were_asked_are_compared(tmp_path: Path):
    rows = {**ROWS, "ours 1": _row(12, limit=6, repeats="ours"), "pool 1": _row(8, finished=False, repeats="pool")}
    results = read_results([made_up.write(tmp_path / "run", rows, reference="pool")])
    found = results[0].over_seeds
    assert found is not None and found.clusters == 6
    assert found.value == pytest.approx(1 - (4 + 6) / 12)
    assert {"ours (first 6 videos)", "pool (unfinished)"} < set(_lines(results))


def test_what_a_run_lacks_has_no_mean(tmp_path: Path):
    rows = {**ROWS, "ours 1": _row(12, limit=0, finished=False, flops=None, repeats="ours")}
    shown = _lines(read_results([made_up.write(tmp_path / "run", rows, reference="pool")]))["ours (unfinished)"]
    assert (shown["runs"], shown["accuracy %"], shown["train flops"], shown["against reference"]) == ("2", *"---")


def test_entries_of_other_folders_are_no_runs(tmp_path: Path, run: Path):
    other = made_up.write(tmp_path / "other", ROWS)
    assert {line["runs"] for line in _lines(read_results([run, other])).values()} == {"2"}


def test_a_row_whose_budget_is_another_says_so(tmp_path: Path):
    budget = {"match": "pool", "measure": "tokens", "ratio": 1.1, "equal": False}
    rows = {**ROWS, "ours 1": _row(12, budget=budget, repeats="ours")}
    assert "ours (not at an equal budget)" in _lines(read_results([made_up.write(tmp_path / "run", rows)]))


def test_every_output_has_the_table(run: Path, capsys: pytest.CaptureFixture[str]):
    assert report([str(run), "--no-frames"]) == 0
    out = capsys.readouterr().out
    assert "60.0 to 80.0" in out.split("Over seeds")[1] and OVER_SEEDS in " ".join(out.split())
    text = (run / "report.html").read_text()
    section = text.split("<h2>Over seeds</h2>")[1].split("</section>")[0]
    assert OVER_SEEDS.replace("'", "&#39;") in section and ">60.0 to 80.0</td>" in section
    assert 'class="better">+40.0' in section and "<tfoot>" not in section
    below = (run / "table.md").read_text().split(OVER_SEEDS)[1].strip().splitlines()
    assert below[0].startswith("| entry | runs | accuracy % | lowest to highest |") and "majority" not in below[5]
    assert below[2].startswith("| ours | 2 | 70.0 | 60.0 to 80.0 | 20.0 | 3 T | \\+40.0 (")
    rows = {row["entry"]: row for row in csv.DictReader(io.StringIO((run / "table.csv").read_text()))}
    ours = {name: rows["ours"][f"seeds_{name}"] for name in ("runs", "lowest", "highest", "train_flops")}
    assert {name: float(value) for name, value in ours.items()} == {
        "runs": 2, "lowest": 0.6, "highest": 0.8, "train_flops": 3e12,
    }  # fmt: skip
    assert float(rows["ours"]["seeds_accuracy"]) == pytest.approx(0.7)
    assert float(rows["ours"]["seeds_difference_value"]) == pytest.approx(0.4)
    assert (rows["ours 1"]["repeats"], rows["ours 1"]["seeds_runs"], rows["alone"]["seeds_runs"]) == ("ours", "", "")


def test_without_repeats_there_is_no_table(tmp_path: Path):
    results = read_results([made_up.write(tmp_path / "run", {"a": _row(3), "b": _row(4)}, reference="a")])
    assert Table.over_seeds(results) is None and "seed" not in as_csv(results)
    assert OVER_SEEDS not in as_markdown(results) and "Over seeds" not in page(results)


@pytest.mark.parametrize(
    ("repeats", "message"),
    [
        ({"b": "aa"}, "entry 'b' repeats 'aa', which is no entry. Did you mean 'a'"),
        ({"b": "b"}, "entry 'b' repeats itself; name the entry with the first seed"),
        ({"b": "a", "c": "b"}, "entry 'c' repeats 'b', which repeats another one; name the entry with the first seed"),
    ],
)
def test_what_no_entry_can_repeat_is_refused(tmp_path: Path, repeats: dict[str, str], message: str):
    rows = [{"name": name, "model": name, "repeats": repeats.get(name)} for name in "abc"]
    with pytest.raises(ValueError, match=message):
        runs.config(tmp_path, entries=rows, reference=None)


def test_a_repeat_is_another_run_of_the_same_method(tmp_path: Path):
    """One run twice would seem not to depend on its seed; a mean over two methods is of neither."""
    first = {"name": "a", "model": "m", "compressor": {"name": "random", "keep": 0.5}}
    again = {**first, "name": "b", "repeats": "a"}
    seeded = {**again, "compressor": {**first["compressor"], "seed": 1}}
    for entry in ({**again, "model": "n"}, seeded):
        assert runs.config(tmp_path, entries=[first, entry], reference=None).entries[1].repeats == "a"
    for entry, message in (
        (again, "'b' repeats 'a' with the same model and method; give the run with another seed"),
        ({**again, "limit": 3}, "with the same model and method"),
        ({**again, "model": "n", "compressor": None}, r"'b' repeats 'a' by another method \(compressor none for "),
        ({**seeded, "compressor": {"name": "random", "keep": 0.1}}, "only model, match and seeds may differ"),
    ):
        with pytest.raises(ValueError, match=message):
            runs.config(tmp_path, entries=[first, entry], reference=None)


def test_repeats_may_be_set_when_all_is_asked(prepared: Path, copied: Path):
    entries = [entry.model_dump() for entry in runs.config(prepared).entries]
    entries[1]["repeats"] = "langdc"
    config = runs.config(prepared, output=str(copied), entries=entries)

    def load(entry):
        raise AssertionError(f"{entry.name} was loaded again")

    before = json.loads((copied / "header.json").read_text())
    evaluate(config, tasks.build(config.task.name, **config.task.settings), load=load)
    header = json.loads((copied / "header.json").read_text())
    assert header["config"] == before["config"] and "repeats" not in header["config"]["entries"][1]
    assert [line["runs"] for line in _lines(read_results([copied])).values()] == ["2"]
