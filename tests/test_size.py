"""The package stays small, and no member of a registry is treated apart from the others."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from langdc.train.objectives import objectives

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("langdc", "train", "eval", "data_prep", "scripts")
PACKAGE = sorted((ROOT / "langdc").rglob("*.py"))
MAX_LINES = 34_500
MAX_PUBLIC = 700


def public(path: Path) -> list[str]:
    """Public classes and functions of a file's top level."""
    nodes = ast.parse(path.read_text()).body
    return [
        node.name
        for node in nodes
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    ]


def literals(path: Path) -> Iterator[str]:
    """The strings that a file's `Literal` types allow."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).split(".")[-1] == "Literal":
            yield from (one.value for one in ast.walk(node.slice) if isinstance(one, ast.Constant))


def test_lines() -> None:
    files = [path for part in PARTS for path in (ROOT / part).rglob("*.py")]
    assert sum(len(path.read_text().splitlines()) for path in files) <= MAX_LINES


def test_public_names() -> None:
    assert sum(len(public(path)) for path in PACKAGE) <= MAX_PUBLIC


def test_langdc_is_an_ordinary_member() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in PACKAGE
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"isinstance\(.*LangDC|CaptionCompressor", line)
    ]
    assert not found


def test_objectives_are_no_closed_list() -> None:
    names = set(objectives.names())
    assert names >= {"answer", "compress", "align", "distill"}
    found = [f"{path.relative_to(ROOT)}: {name}" for path in PACKAGE for name in literals(path) if name in names]
    assert not found
