"""A sweep's report draws accuracy by the share that is kept."""

import json
import re
from pathlib import Path

from langdc.evaluate import report
from langdc.evaluate.comparison import read_results
from langdc.evaluate.page import curves
from tests.evaluate import made_up


def test_tasks_are_not_mixed(tmp_path: Path):
    folders = []
    for name, right, chance in (("one", 30, 8), ("two", 10, 0)):
        rows = {"uncompressed": {"right": 40 - chance, "tokens": lambda _: 2, "compressor": {"name": "identity"}}}
        for keep in (0.25, 0.5):
            method = {"name": "vidcom2", "keep": keep}
            rows[f"vidcom2 {100 * keep:g}%"] = {"right": right, "tokens": lambda _: 2, "compressor": method}
        folders.append(made_up.write(tmp_path / name, rows))
    header = json.loads((folders[1] / "header.json").read_text())
    header["config"]["task"]["data"] = "other.jsonl"
    (folders[1] / "header.json").write_text(json.dumps(header))
    both = curves(read_results(folders))
    alone = [curves(read_results([folder])) for folder in folders]
    assert [[len(found)] for found in alone] == [[1], [1]] and len(both) == 2
    levels = [re.findall(r">(uncompressed|majority answer)</text>", svg) for _, svg in both]
    assert levels == [["majority answer", "uncompressed"]] * 2


def test_methods_at_several_budgets_have_a_curve(tmp_path: Path):
    kept = {
        f"{name} {100 * keep:g}%": {"name": name, "keep": keep} for name in ("vidcom2", "evs") for keep in (0.05, 0.5)
    }
    made = {"uncompressed": {"name": "identity"}, **kept, "random 10%": {"name": "random", "keep": 0.1}}
    rows = {name: {"right": 30, "tokens": lambda _: 2, "compressor": method} for name, method in made.items()}
    swept = made_up.write(tmp_path / "swept", rows)
    run = made_up.write(tmp_path / "run", {"learned": {"right": 36, "tokens": lambda _: 4}})
    assert report([str(swept)]) == report([str(run)]) == 0
    said = re.findall(r">([^<>]+)</text>", (swept / "curves.svg").read_text())
    assert {"vidcom2", "evs", "5 %", "50 %", "uncompressed", "majority answer"} <= set(said)
    assert not {"random", "random 10%", "10 %"} & set(said), "one budget is no curve"
    assert "Accuracy by share kept" in (swept / "report.html").read_text()
    assert not (run / "curves.svg").exists() and "Accuracy by share kept" not in (run / "report.html").read_text()


def test_a_share_is_that_of_all_parts_of_a_method(tmp_path: Path):
    """The last part alone keeps more than the whole method."""
    rows = {}
    for first in ({"keep": 0.5}, {"tokens": 8}):
        for keep in (0.25, 0.5):
            layers = {"name": "fastv", "keep": keep}
            rows[f"{next(iter(first))} {100 * keep:g}%"] = {
                "compressor": {"name": "dpselect", **first},
                "layers": layers,
            }
    made = made_up.write(tmp_path / "run", {name: {"right": 30, "tokens": lambda _: 2} for name in rows})
    header = json.loads((made / "header.json").read_text())
    for entry in header["entries"]:
        entry |= rows[entry["name"]]
    (made / "header.json").write_text(json.dumps(header))
    results = read_results([made])
    assert [result.share for result in results] == [0.125, 0.25, None, None]
    ((_, svg),) = curves(results)
    assert set(re.findall(r">([\d.]+ %|keep|tokens)</text>", svg)) == {"keep", "12.5 %", "25 %"}


def test_curves_of_other_results_do_not_stay(tmp_path: Path):
    kept = {f"evs {100 * keep:g}%": {"name": "evs", "keep": keep} for keep in (0.1, 0.5)}
    rows = {name: {"right": 30, "tokens": lambda _: 2, "compressor": method} for name, method in kept.items()}
    one, two = (made_up.write(tmp_path / name, rows) for name in ("one", "two"))
    header = json.loads((two / "header.json").read_text())
    header["config"]["task"]["data"] = "other.jsonl"
    (two / "header.json").write_text(json.dumps(header))
    (one / "curves-of-mine.svg").touch()
    for given, there in (
        ([one, two], ["curves-2.svg", "curves-of-mine.svg", "curves.svg"]),
        ([one], ["curves-of-mine.svg", "curves.svg"]),
    ):
        assert report([*map(str, given), "--no-frames"]) == 0
        assert sorted(file.name for file in one.glob("*.svg")) == there
