"""Sweeps bring their controls, and a table without them says by name which it lacks."""

import csv
import io
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from langdc import jsonl
from langdc.config import MemberConfig, check
from langdc.evaluate import tasks
from langdc.evaluate.comparison import read_results
from langdc.evaluate.loop import evaluate
from langdc.evaluate.models import OwnCompressor
from langdc.evaluate.notes import missing_controls, notes
from langdc.evaluate.page import curves, page
from langdc.evaluate.results import Result
from langdc.evaluate.settings import EvalConfig
from langdc.evaluate.tables import as_csv, as_markdown
from tests.eval.test_applications import TABLE
from tests.evaluate import made_up, runs

EVERY = ["the uncompressed model", "random tokens", "fewer frames", "lower resolution", "stride", "average pooling"]
CAPTIONS = "the decoded captions as text"
OWN = {
    None: {"name": None},
    "langdc": {"name": "langdc", "learned": True, "grid": False, "writes": True},
    "pool": {"name": "pool", "learned": False, "grid": True, "writes": False},
}


def _config(**tree) -> EvalConfig:
    return check(EvalConfig, {"task": {"name": "sample"}, "output": "x", **tree}, "test")


def _asked(
    folder: Path,
    config: EvalConfig,
    own: dict[str, str] | None = None,
    leave: int = 0,
    tokens: Mapping[str, int] = {},
) -> list[Result]:
    """Rows with answers made up, as if a run of these settings had been made; the last ones are left out.

    `tokens`: of each of two segments of a video, by row; of the others 50.
    """
    rows = config.all_entries
    counts = {row.name: tokens.get(row.name, 50) for row in rows[: len(rows) - leave]}
    made = {name: {"right": 3, "tokens": lambda _, n=count: n} for name, count in counts.items()}
    made_up.write(folder, made, videos=3)
    header = json.loads((folder / "header.json").read_text())
    header["config"] |= {"sweep": config.model_dump(mode="json")["sweep"]}
    header |= {
        "entries": [row.model_dump(mode="json") for row in rows],
        "own_compressors": {row.name: OWN[(own or {}).get(row.name)] for row in rows},
    }
    header["training"] = {row.name: {} for row in rows}
    (folder / "header.json").write_text(json.dumps(header))
    return read_results([folder])


def _sweep(**more) -> dict:
    return {"models": [{"model": "m"}], "methods": ["vidcom2", "kv:snapkv"], "budgets": [0.1, 0.25], **more}


def test_a_sweep_lacks_nothing(tmp_path: Path):
    rows = _asked(tmp_path / "run", _config(sweep=_sweep()))
    assert missing_controls(rows) == [] and not any("Controls" in note for note in notes(rows))
    assert "Controls missing" not in as_markdown(rows) + page(rows)
    assert {line["controls_missing"] for line in csv.DictReader(io.StringIO(as_csv(rows)))} == {""}


def test_layer_compressors_in_a_sweep_are_methods_inside_the_model(tmp_path: Path):
    method = {"name": "both", "compressor": {"name": "dycoke", "keep": 0.5}, "layers": {"name": "dart", "layer": 1}}
    config = _config(sweep=_sweep(methods=["fastv", "layers:dart", method], budgets=[0.5]))
    found = {row.name: row for row in config.all_entries}
    assert list(found)[-3:] == ["fastv 50%", "dart 50%", "both 50%"] and "random keys 50%" in found
    assert found["fastv 50%"].layers == MemberConfig(name="fastv", keep=0.5)
    both = found["both 50%"]
    assert both.layers == MemberConfig(name="dart", layer=1, keep=0.5) and both.compressor.settings == {"keep": 0.5}
    assert missing_controls(_asked(tmp_path / "run", config)) == []


def test_methods_are_compared_with_random_tokens_or_keys_at_their_budget(tmp_path: Path):
    """All of them have three questions right, but for random tokens at a tenth and random keys at a quarter.

    `both` keeps half of that budget, and another choice of frames is another condition.
    """
    retake = {"name": "retake", "compressor": {"name": "dpselect", "keep": 1.0}, "kv": {"name": "pivotkv"}}
    both = {"name": "both", "compressor": {"name": "dpselect", "keep": 0.5}, "kv": {"name": "pivotkv"}}
    config = _config(sweep=_sweep(methods=["vidcom2", "kv:snapkv", "layers:fastv", retake, both]))
    folder = tmp_path / "run"
    _asked(folder, config)
    right = {"random tokens 10%": 0, "random keys 25%": 5}
    made = {row.name: {"right": right.get(row.name, 3), "tokens": lambda _: 4} for row in config.all_entries}
    header = (folder / "header.json").read_text()
    shutil.rmtree(folder)
    made_up.write(folder, made, videos=3)
    (folder / "header.json").write_text(header)
    found = {row.name: row.against_random for row in read_results([folder])}
    gained = {name: round(each.value * 3) for name, each in found.items() if each is not None}
    inside = ("snapkv", "fastv", "retake")
    assert gained == {
        "fewer frames 10%": 2,
        "lower resolution 10%": 2,
        "stride 10%": 2,
        "average pooling 10%": 2,
        "fewer frames 25%": 0,
        "lower resolution 25%": 0,
        "stride 25%": 0,
        "average pooling 25%": 0,
        "vidcom2 10%": 2,
        "vidcom2 25%": 0,
        **{f"{name} 10%": 0 for name in inside},
        **{f"{name} 25%": -1 for name in inside},
    }
    assert "against random" in as_markdown(read_results([folder]))
    changed = json.loads(header)
    next(entry for entry in changed["entries"] if entry["name"] == "vidcom2 10%")["frames"] = {"name": "aks"}
    (folder / "header.json").write_text(json.dumps(changed))
    found = {row.name: row.against_random for row in read_results([folder])}
    assert found["vidcom2 10%"] is None and found["vidcom2 25%"] is not None


def test_a_method_that_keeps_more_than_its_budget_is_not_compared_with_random(tmp_path: Path):
    """Tokens are compared before the model and the cache inside it; 2 % more are allowed."""
    more = {"dycoke 10%": 53, "evs 10%": 51, "dycoke_decoding 10%": 60}
    config = _config(sweep=_sweep(methods=["dycoke", "evs", "kv:dycoke_decoding", "kv:snapkv"]))
    results = _asked(tmp_path / "run", config, tokens=more)
    found = {row.name: row for row in results}
    above = {name: row.above_budget for name, row in found.items() if row.above_budget}
    assert above == {
        "dycoke 10%": "1.06 times the tokens of random tokens 10%",
        "dycoke_decoding 10%": "1.2 times the cache of random keys 10%",
    }
    assert all((found[name].against_random is None) == (name in above) for name in (*above, "evs 10%", "snapkv 10%"))
    table = as_markdown(results)
    assert "| dycoke 10% (above its budget) |" in table and "| evs 10% |" in table
    listed = ", ".join(f"{name} ({words})" for name, words in above.items())
    assert f"Above their budget, so not compared with random and on no curve: {listed}." in table
    ((_, svg),) = curves(results)
    assert set(re.findall(r">(dycoke|dycoke_decoding|evs|snapkv)</text>", svg)) == {"evs", "snapkv"}


def test_a_sweep_told_to_leave_them_out_says_so_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = _asked(tmp_path / "run", _config(sweep=_sweep(controls=False)))
    assert missing_controls(rows) == EVERY
    assert TABLE.main([str(tmp_path / "run")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (as_markdown(rows), page(rows), printed):
        assert f"Controls missing from this table: {'; '.join(EVERY)}. " in text
        assert "sweep.controls: false" in text
    assert {line["controls_missing"] for line in csv.DictReader(io.StringIO(as_csv(rows)))} == {"; ".join(EVERY)}


def test_rows_listed_one_by_one_are_told_that_nothing_is_added(tmp_path: Path):
    rows = _asked(tmp_path / "run", _config(entries=[{"name": "a", "model": "m", "compressor": {"name": "vidcom2"}}]))
    assert missing_controls(rows) == EVERY
    assert any("entries that are listed one by one get none" in note for note in notes(rows))


@pytest.mark.parametrize("number", range(6))
def test_each_control_is_known_by_its_settings_not_its_name(tmp_path: Path, number: int):
    by = [{"name": "uniform", "by": by} for by in ("resolution", "stride", "pool")]
    compressors = ["identity", "random", "uniform", *by]
    rows = [{"name": "method", "model": "m", "compressor": {"name": "vidcom2"}}]
    for place, compressor in enumerate(compressors):
        settings = compressor if isinstance(compressor, dict) else {"name": compressor}
        rows.append({"name": f"row {place}", "model": "m", "compressor": settings})
    del rows[1 + number]
    assert missing_controls(_asked(tmp_path / "run", _config(entries=rows))) == [EVERY[number]]


def test_a_control_is_wanted_at_every_budget(tmp_path: Path):
    rows = [
        {"name": f"{name} {keep}", "model": "m", "compressor": {"name": name, "keep": keep}}
        for name, keep in [("vidcom2", 0.1), ("vidcom2", 0.25), ("random", 0.25), ("uniform", 0.1), ("uniform", 0.25)]
    ]
    found = missing_controls(_asked(tmp_path / "run", _config(entries=rows)))
    assert found == ["the uncompressed model", "random tokens at 10 %", *EVERY[3:]]


def test_controls_that_are_yet_to_be_asked_are_missing_until_then(tmp_path: Path):
    rows = _asked(tmp_path / "run", _config(sweep=_sweep()), leave=14)
    assert missing_controls(rows) == EVERY[3:] and any(
        "Some entries are not asked yet." in note for note in notes(rows)
    )


def test_langdc_is_to_stand_beside_its_captions(tmp_path: Path):
    rows = [{"name": "langdc", "model": "m"}]
    found = missing_controls(_asked(tmp_path / "one", _config(entries=rows), {"langdc": "langdc"}))
    assert found == [*EVERY, CAPTIONS]  # it is a compressor itself
    assert missing_controls(_asked(tmp_path / "two", _config(entries=rows), {"langdc": "pool"})) == EVERY[1:]
    rows.append({"name": "text", "model": "m", "control": "caption_text"})
    own = {"langdc": "langdc", "text": "langdc"}
    assert missing_controls(_asked(tmp_path / "three", _config(entries=rows), own)) == EVERY


def test_a_sweep_puts_langdc_beside_its_own_controls(prepared: Path, tmp_path: Path):
    assert vars(OwnCompressor.of(prepared / "langdc")) == OWN["langdc"]
    assert vars(OwnCompressor.of(prepared / "pool")) == OWN["pool"]
    assert OwnCompressor.of(tmp_path).name is None and OwnCompressor.of(tmp_path / "nothing").name is None
    models = [{"name": "ours", "model": str(prepared / "langdc")}, {"name": "pooled", "model": str(prepared / "pool")}]
    sweep = {"models": models, "methods": ["vidcom2"], "budgets": [0.25]}
    tree = runs.config(prepared).model_dump(mode="json")
    tree |= {
        "entries": [],
        "sweep": sweep,
        "reference": None,
        "limit": 2,
        "timing_videos": 0,
        "output": tmp_path / "run",
    }
    config = check(EvalConfig, tree, "test")
    controls = ["caption as text", "random tokens", "uniform frames", "lower resolution", "stride", "average pooling"]
    learned = ["ours", *(f"ours {control}" for control in controls)]
    assert [row.name for row in config.all_entries][:7] == learned
    assert all(row.name.startswith("pooled ") for row in config.all_entries[7:])
    evaluate(config, tasks.build(config.task.name, **config.task.settings))
    lines = {row.name: jsonl.read(tmp_path / "run" / "results" / row.name / "0.jsonl") for row in config.all_entries}
    counts = {name: [line["tokens"] for line in of if line["type"] == "video"] for name, of in lines.items()}
    assert counts["ours random tokens"] == counts["ours"] and len(counts["ours"]) == 2
    assert not any(line["failed"] for of in lines.values() for line in of if line["type"] == "answer")
    assert missing_controls(read_results([tmp_path / "run"])) == []
    tree["sweep"]["controls"] = False
    assert [row.name for row in check(EvalConfig, tree, "test").all_entries] == ["ours", "pooled vidcom2 25%"]


def test_captions_are_read_by_the_model_that_is_named(prepared: Path):
    models = [{"model": str(prepared / "langdc"), "captions": "stage2"}]
    config = _config(sweep={"models": models, "methods": ["vidcom2"], "budgets": [0.25]})
    named = [(row.name, str(row.model), row.control) for row in config.all_entries]
    assert named == [("langdc", str(prepared / "langdc"), None), ("langdc caption as text", "stage2", "caption_text")]
