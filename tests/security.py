"""What the tests of SECURITY.md share: which sentences they hold, the calls in our sources, and films."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from langdc.config import check
from langdc.endpoint import Endpoint, EndpointConfig
from langdc.video import write_video

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for part in ("langdc", "train", "eval", "data_prep", "scripts") for path in (ROOT / part).rglob("*.py")]
PAGES = sorted((ROOT / "langdc").rglob("*.html"))
DEEP = "[" * 100_000
TESTED: set[str] = set()


def sentence(begin: str) -> Callable:
    """Marks the test of a sentence of SECURITY.md by its first words."""
    TESTED.add(begin)
    return lambda test: test


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a file, by dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str, str]:
    return {str(each.arg): ast.unparse(each.value) for each in call.keywords}


def film(path: Path, level: int = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.full((4, 16, 16, 3), level, np.uint8), 4)
    return path


def connect(url: str, **settings: object) -> Endpoint:
    return Endpoint(check(EndpointConfig, {"url": url, "model": "tiny", **settings}, "test"))
