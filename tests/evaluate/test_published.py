"""A run that misses the published score of the uncompressed model says so wherever a figure of it is shown."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from langdc import jsonl
from langdc.config import check
from langdc.evaluate import tasks
from langdc.evaluate.comparison import read_results
from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.judge import VERDICTS, Case, Judge
from langdc.evaluate.loop import evaluate
from langdc.evaluate.page import page
from langdc.evaluate.published import check_published
from langdc.evaluate.results import Result
from langdc.evaluate.settings import EvalConfig, JudgeConfig
from langdc.evaluate.tables import Table, as_csv, as_markdown, citation
from tests.eval.test_applications import RUN, TABLE
from tests.evaluate import made_up, runs

HALF = {"uncompressed": {"right": 20, "tokens": lambda _: 8}, "method": {"right": 12, "tokens": lambda _: 4}}
"""20 videos of two questions; half of the counted ones are answered right by the first row."""


def _run(folder: Path, published: list[dict], rows: dict[str, dict] = HALF) -> list[Result]:
    made_up.write(folder / "run", rows)
    path = folder / "run" / "header.json"
    header = json.loads(path.read_text())
    tree = {"task": {"name": "sample"}, "entries": [{"name": name, "model": "m"} for name in rows], "output": "x"}
    header |= check(EvalConfig, {**tree, "published": published}, "test").judging
    path.write_text(json.dumps(header))
    return read_results([folder / "run"])


def _published(score: float, **more) -> dict:
    return {"entry": "uncompressed", "score": score, "source": "A Paper, table 1", **more}


def _printed(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert TABLE.main([str(run)]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("score", "tolerance", "mark"),
    [
        (50.0, 0, ""), (51.0, 1, ""), (49.0, 1, ""), (50.3, 0.3, ""),
        (51.1, 1, "uncalibrated"), (48.9, 1, "uncalibrated"), (50.1, 0, "uncalibrated"),
    ],
)  # fmt: skip
def test_the_point_estimate_decides_either_way(tmp_path: Path, score: float, tolerance: float, mark: str):
    first, method = _run(tmp_path, [_published(score, tolerance=tolerance)])
    assert method.check is not None and method.check.measured == 50.0 and method.check.n == 20
    assert first.flag == method.flag == mark
    assert Table.cells(first)["entry"].text == "uncompressed"
    assert Table.cells(method)["entry"].text == "method" + (f" ({mark})" if mark else "")


def test_a_miss_is_told_in_every_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = _run(tmp_path, [_published(58.2, tolerance=1.5)])
    told = "uncompressed: measured 50.0 at n = 20 questions, published 58.2 ± 1.5 (A Paper, table 1)"
    more = "missed by 8.2 points. Therefore uncalibrated: method."
    for text in (as_markdown(rows), page(rows), _printed(tmp_path / "run", capsys)):
        assert f"Uncalibrated. {told}: {more}" in text
        assert "method (uncalibrated)" in text and "uncompressed (uncalibrated)" not in text
    assert [f"Uncalibrated: {told}" in citation(row) for row in rows] == [True, True]
    _, method = csv.DictReader(io.StringIO(as_csv(rows)))
    assert (method["calibration"], method["published_measured"], method["published_n"]) == (
        "uncalibrated",
        "50.0",
        "20",
    )
    assert (method["published_score"], method["published_tolerance"]) == ("58.2", "1.5")


def test_the_headline_of_the_page_is_marked_too(tmp_path: Path):
    ahead = {**HALF, "method": {"right": 30, "tokens": lambda _: 4}}
    assert "<h1>method (uncalibrated) is ahead" in page(_run(tmp_path / "missed", [_published(90)], ahead))
    assert "<h1>method is ahead" in page(_run(tmp_path / "met", [_published(50)], ahead))


def test_a_score_that_is_met_marks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = _run(tmp_path, [_published(50.5)])
    for text in (as_markdown(rows), page(rows), _printed(tmp_path / "run", capsys)):
        assert "Calibrated. uncompressed: measured 50.0 at n = 20 questions, published 50.5 ± 1 (A Paper" in text
        assert "ncalibrated" not in text
    assert "Calibrated: uncompressed: measured 50.0" in citation(rows[1])
    assert [line["calibration"] for line in csv.DictReader(io.StringIO(as_csv(rows)))] == ["calibrated"] * 2


@pytest.mark.parametrize("missing", ["file", "end"])
def test_a_row_that_is_not_measured_yet_vouches_for_nothing(tmp_path: Path, missing: str):
    _run(tmp_path, [_published(50)])
    path = tmp_path / "run" / "results" / "uncompressed" / "0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink() if missing == "file" else path.write_text("".join(lines[:-1]))
    rows = read_results([tmp_path / "run"])
    for text in (as_markdown(rows), page(rows)):
        assert "method (not calibrated yet)" in text and "Not calibrated yet. uncompressed: published 50 ± 1" in text
        assert ("not asked yet" if missing == "file" else "not finished") in text
    assert "Not calibrated yet: uncompressed" in citation(rows[-1])
    assert list(csv.DictReader(io.StringIO(as_csv(rows))))[-1]["calibration"] == "not calibrated yet"


def test_without_a_published_score_that_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = _run(tmp_path, [])
    for text in (as_markdown(rows), page(rows), _printed(tmp_path / "run", capsys)):
        assert text.count("No published score is set") == 1 and "ncalibrated" not in text
    assert {line["calibration"] for line in csv.DictReader(io.StringIO(as_csv(rows)))} == {"no published score"}


def _of_models(folder: Path, published: list[dict], models: dict[str, str]) -> list[Result]:
    """Rows of several models, by name; all measure 50."""
    _run(folder, published, {name: {"right": 20, "tokens": lambda _: 8} for name in models})
    header = json.loads((folder / "run" / "header.json").read_text())
    for row in header["entries"]:
        row["model"] = models[row["name"]]
    (folder / "run" / "header.json").write_text(json.dumps(header))
    return read_results([folder / "run"])


MODELS = {"early": "a", "a": "a", "a 25%": "a", "b": "b", "b 25%": "b"}


def test_each_score_speaks_for_the_rows_after_it(tmp_path: Path):
    published = [_published(60, entry="a"), _published(50, entry="b")]
    rows = _of_models(tmp_path, published, MODELS)
    assert [row.flag for row in rows] == ["uncalibrated"] * 3 + [""] * 2
    rows = _of_models(tmp_path / "mixed", published, dict(reversed(MODELS.items())))
    assert {row.name: row.flag for row in rows} == {name: "" if "b" in name else "uncalibrated" for name in MODELS}


def test_a_miss_marks_later_rows_of_other_models_too_and_a_hit_vouches_for_its_own_alone(tmp_path: Path):
    missed = _of_models(tmp_path, [_published(60, entry="a")], MODELS)
    assert [row.flag for row in missed] == ["uncalibrated"] * 5
    met = _of_models(tmp_path / "met", [_published(50, entry="a")], MODELS)
    assert [row.flag for row in met] == [""] * 5 and [row.check is None for row in met] == [False] * 3 + [True] * 2
    assert "No published score is set for the figures of b, b 25% (published)" in as_markdown(met)


def test_a_score_of_a_part_is_compared_with_that_part(tmp_path: Path):
    rows = _run(tmp_path, [_published(50, kinds=["shape"])])
    assert rows[0].check is not None and (rows[0].check.n, rows[0].check.part) == (20, "; of shape")
    path = tmp_path / "run" / "results" / "uncompressed" / "0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["type"] == "answer" and line["number"] == 0:
            line["labels"] = {"said": "yes" if line["correct"] else "no"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    header = tmp_path / "run" / "header.json"
    for labels, measured, n in (({"said": "yes"}, 100, 10), ({"said": "no"}, 0, 10), ({"said": "maybe"}, None, 0)):
        tree = json.loads(header.read_text())
        tree["published"][0] |= {"kinds": None, "labels": labels}
        header.write_text(json.dumps(tree))
        check = read_results([tmp_path / "run"])[0].check
        assert check is not None and (check.measured, check.n) == (measured, n)


def test_kinds_weigh_as_in_the_headline(tmp_path: Path):
    scored = {(number, place): float(place == 0 and number == 0) for number in range(4) for place in (0, 1)}
    made = {"uncompressed": {"right": 0, "tokens": lambda _: 1, "scored": scored}}
    made["wrong"] = {"right": 0, "tokens": lambda _: 1}
    made_up.write(tmp_path / "run", made, videos=4)
    path = tmp_path / "run" / "results" / "uncompressed" / "0.jsonl"
    kept = [
        line for line in path.read_text().splitlines(keepends=True) if '"v03/0"' not in line and '"v02/0"' not in line
    ]
    path.write_text("".join(kept))  # two questions of one kind, four of the other
    header = tmp_path / "run" / "header.json"
    tree = json.loads(header.read_text())
    tree["target_kinds"] = ["count", "shape"]
    alike, thrice = {"count": 1.0, "shape": 1.0}, {"count": 3.0, "shape": 1.0}
    for weights, measured in ((None, 100 / 6), (alike, 25), (thrice, 37.5)):
        published = _published(50, tolerance=1, kinds=None, labels={})
        header.write_text(json.dumps({**tree, "published": [published], "kind_weights": weights}))
        row = read_results([tmp_path / "run"], "wrong")[0]
        assert row.accuracy is not None and 100 * row.accuracy.value == pytest.approx(measured)
        assert row.difference is not None and 100 * row.difference.value == pytest.approx(measured)
        check = read_results([tmp_path / "run"])[0].check
        assert check is not None and check.measured == pytest.approx(measured) and check.n == 6


def test_where_a_judge_is_asked_its_word_counts(tmp_path: Path):
    rows = _run(tmp_path, [_published(100)])
    header = tmp_path / "run" / "header.json"
    judge = {"model": "tiny", "options": {}}
    header.write_text(json.dumps({**json.loads(header.read_text()), "judge": judge}))
    cases = {case for line in rows[0].lines if (case := Case.of(line)) is not None}
    judging = Judge(check(JudgeConfig, {"url": "http://x", **judge}, "test"), tmp_path / "other.jsonl")
    said = {"type": "verdict", "right": True, "score": 5}
    lines = [{"key": judging.key(case), **said, **asdict(case)} for case in cases]
    for known in (lines[:1], lines):
        assert read_results([tmp_path / "run"])[0].flag == "not calibrated yet"
        (tmp_path / "run" / VERDICTS).write_text("".join(json.dumps(line) + "\n" for line in known))
    row = read_results([tmp_path / "run"])[0]
    assert row.flag == "" and row.check is not None and row.check.measured == 100.0


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ([_published(50, entry="uncompresed")], "no entry 'uncompresed'. Did you mean 'uncompressed'"),
        ([_published(50), _published(51)], "one score for an entry"),
        ([_published(101)], "published.0.score"),
        ([{"entry": "uncompressed", "score": 50}], "published.0.source"),
    ],
)
def test_mistakes_in_the_settings(published: list[dict], message: str):
    rows = [{"name": "uncompressed", "model": "m"}]
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        check(EvalConfig, {"task": {"name": "sample"}, "entries": rows, "output": "x", "published": published}, "test")


def test_a_part_that_the_task_does_not_have_is_a_mistake(prepared: Path):
    for part, message in (({"kinds": ["cuont"]}, "Did you mean 'count'"), ({"labels": {"a": "b"}}, "has the labels")):
        config = runs.config(prepared, published=[_published(50, entry="langdc", **part)])
        with pytest.raises(ValueError, match=message):
            check_published(config, tasks.build(config.task.name, **config.task.settings))


def test_another_tolerance_asks_nothing_again(prepared: Path, copied: Path):
    config = runs.config(prepared, output=str(copied))
    before = {path: path.read_bytes() for path in sorted((copied / "results").rglob("*.jsonl"))}
    task = tasks.build(config.task.name, **config.task.settings)
    for tolerance, mark in ((0.0, "uncalibrated"), (100.0, "")):
        published = [_published(99.9, entry="pool 3", tolerance=tolerance)]
        evaluate(runs.config(prepared, output=str(copied), published=published), task)
        assert {path: path.read_bytes() for path in sorted((copied / "results").rglob("*.jsonl"))} == before
        assert EvalFolder.read(copied).header["published"][0]["tolerance"] == tolerance
        assert {row.flag for row in read_results([copied])} == {mark}
    evaluate(config, task)
    assert EvalFolder.read(copied).header["published"] == []


def test_from_the_command_to_the_table(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tree = runs.config(prepared, output=str(tmp_path / "run"), limit=1, timing_videos=0).model_dump(mode="json")
    tree["entries"] = tree["entries"][1::-1]
    tree |= {"published": [_published(12.5, entry="pool 3", tolerance=0.01)]}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(tree))
    assert RUN.main(["--config", str(tmp_path / "eval.yaml")]) == 0
    printed = _printed(tmp_path / "run", capsys)
    asked = len(
        [line for line in jsonl.read(tmp_path / "run" / "results" / "pool 3" / "0.jsonl") if line["type"] == "answer"]
    )
    assert "langdc (uncalibrated)" in printed and "Uncalibrated. pool 3: measured" in printed and asked > 0
    assert RUN.main(["--config", str(tmp_path / "eval.yaml"), "published.0.tolerance=100"]) == 0
    assert "Calibrated. pool 3: measured" in _printed(tmp_path / "run", capsys)
