"""What `scripts/gpu.py` found, as tables: from files to a page of Markdown. Nothing heavy is imported."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def tables(file: Path) -> dict[str, list[dict[str, Any]]]:
    """What a step found: its JSON, or the counts and failures of pytest."""
    if not file.is_file():
        return {}
    if file.suffix == ".json":
        return json.loads(file.read_text())
    suite = next(ElementTree.parse(file).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [
        {"failed": f"{case.get('classname')}::{case.get('name')}", "why": (part.get("message") or "")[:200]}
        for case in suite.iter("testcase")
        for part in case
        if part.tag in ("failure", "error")
    ]
    return {"tests": [counts], **({"failed": failed} if failed else {})}


def page(found: dict[str, Any]) -> str:
    """Markdown of all that is known so far."""
    lines = ["# make gpu", "", f"`{found['command']}`, {found['seconds']:.0f} of {found['budget']:.0f} s.", ""]
    lines += ["## Asked and measured", "", *table(found["asked"]), ""]
    states = [{"step": n, **{k: v for k, v in s.items() if k != "tables"}} for n, s in found["steps"].items()]
    lines += ["## Steps", "", *table(states), ""]
    for name, step in found["steps"].items():
        for title, rows in step["tables"].items():
            lines += [f"## {name}: {title}", "", *table(rows), ""]
    return "\n".join(lines)


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table of rows; its columns are the keys that any of them has."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells)]


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
