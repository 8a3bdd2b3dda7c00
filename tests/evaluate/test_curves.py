"""A sweep's report draws accuracy by the share that is kept."""

import re
from pathlib import Path

from langdc.evaluate import report
from tests.evaluate import made_up


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
