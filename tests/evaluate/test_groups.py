"""Groups of target kinds, such as what captions say and what they leave out, have figures of their own."""

import csv
import io
import json
from pathlib import Path

from langdc.evaluate.command import _rich
from langdc.evaluate.comparison import read_results
from langdc.evaluate.page import page
from langdc.evaluate.tables import Table, as_csv, as_markdown
from tests.evaluate import made_up

ROWS = {"learned": {"right": 36, "tokens": lambda density: 4 * density}, "pool": {"right": 8, "tokens": lambda _: 32}}


def label(folder: Path, first: str) -> None:
    """Questions about videos before the `first` are of a group, all others of another."""
    for file in folder.rglob("*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            if line["type"] == "answer":  # also those of "shape", which is no target
                line["labels"] = {"group": "said" if line["video"] < first else "unsaid"}
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_groups_of_target_kinds_have_columns(tmp_path: Path):
    folder = made_up.write(tmp_path / "grouped", ROWS)
    plain = read_results([folder])
    assert plain[0].groups == {} and "said" not in as_csv(plain)
    label(folder, "v00")
    assert all(result.groups == {} for result in read_results([folder])), "one group has the accuracy of all"
    label(folder, "v05")
    learned, pool = read_results([folder])
    assert {name: (share.value, share.n, chance) for name, (share, chance) in learned.groups.items()} == {
        "said": (1.0, 5, 0.75),
        "unsaid": (13 / 15, 15, 0.75),
    }
    said, unsaid = (share for share, _ in pool.groups.values())
    assert (said.value, unsaid.value) == (4 / 5, 0.0)
    head, _, first, _, majority = (line.split(" | ") for line in as_markdown([learned, pool]).splitlines()[:5])
    assert [first[head.index(name)] for name in ("said", "unsaid")] == ["100.0", "86.7"]
    assert [majority[head.index(name)] for name in ("said", "unsaid")] == ["75.0", "75.0"]
    row = next(csv.DictReader(io.StringIO(as_csv([learned, pool]))))
    assert float(row["group_unsaid_value"]) == 13 / 15 and float(row["chance_group_said"]) == 0.75
    assert page([learned, pool]).count(">unsaid<") >= 1
    accuracy, cost = _rich(Table.of([learned, pool]))[:2]
    assert {"said", "unsaid"} <= {column.header for column in accuracy.columns}
    assert not {"said", "unsaid"} & {column.header for column in cost.columns}
