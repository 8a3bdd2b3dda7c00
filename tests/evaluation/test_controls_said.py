"""Sweeps bring their controls, and a table without them says by name which it lacks."""

import csv
import io
import json
from pathlib import Path

import pytest

from langdc import jsonl
from langdc.config import check
from langdc.evaluation import tasks
from langdc.evaluation.loop import evaluate
from langdc.evaluation.notes import lacking, missing_controls
from langdc.evaluation.page import page
from langdc.evaluation.report import as_csv, as_markdown
from langdc.evaluation.rows import Row, read_rows
from langdc.evaluation.settings import EvalConfig, own_compressor
from tests.eval.test_applications import TABLE
from tests.evaluation import made_up, runs

EVERY = ["the uncompressed model", "random tokens", "fewer frames", "lower resolution"]
CAPTIONS = "the decoded captions as text"


def _config(**tree) -> EvalConfig:
    return check(EvalConfig, {"task": {"name": "sample"}, "output": "x", **tree}, "test")


def _asked(folder: Path, config: EvalConfig, own: dict[str, str] | None = None, leave: int = 0) -> list[Row]:
    """Rows with answers made up, as if a run of these settings had been made; the last ones are left out."""
    rows = config.all_rows
    made = {row.name: {"right": 3, "tokens": lambda _: 4} for row in rows[: len(rows) - leave]}
    made_up.write(folder, made, videos=3)
    header = json.loads((folder / "header.json").read_text())
    header["config"] |= {"sweep": config.model_dump(mode="json")["sweep"]}
    header |= {
        "rows": [row.model_dump(mode="json") for row in rows],
        "own_compressors": {row.name: (own or {}).get(row.name) for row in rows},
    }
    header["training"] = {row.name: {} for row in rows}
    (folder / "header.json").write_text(json.dumps(header))
    return read_rows([folder])


def _sweep(**more) -> dict:
    return {"models": [{"model": "m"}], "methods": ["vidcom2", "kv:snapkv"], "budgets": [0.1, 0.25], **more}


def test_a_sweep_lacks_nothing(tmp_path: Path):
    rows = _asked(tmp_path / "run", _config(sweep=_sweep()))
    assert lacking(rows) == [] and missing_controls(rows) == ""
    assert "Controls missing" not in as_markdown(rows) + page(rows)
    assert {line["controls_missing"] for line in csv.DictReader(io.StringIO(as_csv(rows)))} == {""}


def test_a_sweep_told_to_leave_them_out_says_so_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = _asked(tmp_path / "run", _config(sweep=_sweep(controls=False)))
    assert lacking(rows) == EVERY
    assert TABLE.main([str(tmp_path / "run")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (as_markdown(rows), page(rows), printed):
        assert f"Controls missing from this table: {'; '.join(EVERY)}. " in text
        assert "sweep.controls: false" in text
    assert {line["controls_missing"] for line in csv.DictReader(io.StringIO(as_csv(rows)))} == {"; ".join(EVERY)}


def test_rows_listed_one_by_one_are_told_that_nothing_is_added(tmp_path: Path):
    rows = _asked(tmp_path / "run", _config(rows=[{"name": "a", "model": "m", "compressor": {"name": "vidcom2"}}]))
    assert lacking(rows) == EVERY
    assert "rows that are listed one by one get none" in missing_controls(rows)


@pytest.mark.parametrize("number", range(4))
def test_each_control_is_known_by_its_settings_not_its_name(tmp_path: Path, number: int):
    compressors = ["identity", "random", "uniform", {"name": "uniform", "by": "resolution"}]
    rows = [{"name": "method", "model": "m", "compressor": {"name": "vidcom2"}}]
    for place, compressor in enumerate(compressors):
        settings = compressor if isinstance(compressor, dict) else {"name": compressor}
        rows.append({"name": f"row {place}", "model": "m", "compressor": settings})
    del rows[1 + number]
    assert lacking(_asked(tmp_path / "run", _config(rows=rows))) == [EVERY[number]]


def test_a_control_is_wanted_at_every_budget(tmp_path: Path):
    rows = [
        {"name": f"{name} {keep}", "model": "m", "compressor": {"name": name, "keep": keep}}
        for name, keep in [("vidcom2", 0.1), ("vidcom2", 0.25), ("random", 0.25), ("uniform", 0.1), ("uniform", 0.25)]
    ]
    found = lacking(_asked(tmp_path / "run", _config(rows=rows)))
    assert found == ["the uncompressed model", "random tokens at 10 %", "lower resolution"]


def test_controls_that_are_yet_to_be_asked_are_missing_until_then(tmp_path: Path):
    rows = _asked(tmp_path / "run", _config(sweep=_sweep()), leave=10)
    assert lacking(rows) == ["lower resolution"] and "Some rows are not asked yet." in missing_controls(rows)


def test_langdc_is_to_stand_beside_its_captions(tmp_path: Path):
    rows = [{"name": "langdc", "model": "m"}]
    found = lacking(_asked(tmp_path / "one", _config(rows=rows), {"langdc": "langdc"}))
    assert found == [*EVERY, CAPTIONS]  # it is a compressor itself
    assert lacking(_asked(tmp_path / "two", _config(rows=rows), {"langdc": "pool"})) == EVERY[1:]
    rows.append({"name": "text", "model": "m", "control": "caption_text"})
    own = {"langdc": "langdc", "text": "langdc"}
    assert lacking(_asked(tmp_path / "three", _config(rows=rows), own)) == EVERY


def test_a_sweep_puts_langdc_beside_its_own_controls(prepared: Path, tmp_path: Path):
    assert own_compressor(prepared / "langdc") == "langdc" and own_compressor(prepared / "pool") == "pool"
    assert own_compressor(tmp_path) is None and own_compressor(tmp_path / "nothing") is None
    models = [{"name": "ours", "model": str(prepared / "langdc")}, {"name": "pooled", "model": str(prepared / "pool")}]
    sweep = {"models": models, "methods": ["vidcom2"], "budgets": [0.25]}
    tree = runs.config(prepared).model_dump(mode="json")
    tree |= {"rows": [], "sweep": sweep, "reference": None, "limit": 2, "timing_videos": 0, "output": tmp_path / "run"}
    config = check(EvalConfig, tree, "test")
    learned = ["ours", "ours caption as text", "ours random tokens", "ours uniform frames"]
    assert [row.name for row in config.all_rows][:4] == learned
    assert all(row.name.startswith("pooled ") for row in config.all_rows[4:])
    evaluate(config, tasks.build(config.task.name, **config.task.settings))
    lines = {row.name: jsonl.read(tmp_path / "run" / "rows" / f"{row.name}.jsonl") for row in config.all_rows}
    counts = {name: [line["tokens"] for line in of if line["type"] == "video"] for name, of in lines.items()}
    assert counts["ours random tokens"] == counts["ours"] and len(counts["ours"]) == 2
    assert not any(line["failed"] for of in lines.values() for line in of if line["type"] == "answer")
    assert lacking(read_rows([tmp_path / "run"])) == []
    tree["sweep"]["controls"] = False
    assert [row.name for row in check(EvalConfig, tree, "test").all_rows] == ["ours", "pooled vidcom2 25%"]


def test_captions_are_read_by_the_model_that_is_named(prepared: Path):
    models = [{"model": str(prepared / "langdc"), "captions": "stage2"}]
    config = _config(sweep={"models": models, "methods": ["vidcom2"], "budgets": [0.25]})
    named = [(row.name, str(row.model), row.control) for row in config.all_rows]
    assert named == [("langdc", str(prepared / "langdc"), None), ("langdc caption as text", "stage2", "caption_text")]
