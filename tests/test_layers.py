"""Who may import whom, and how long files and functions may be, read from the source with `ast`.

`ROWS` is the table of docs/architecture.md, from the top: a module imports from its own row and the rows below, never
in a circle; the zoos do not know each other.
"""

import ast
import textwrap
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APPLICATIONS = ("train", "eval", "data_prep", "scripts")
ROWS = (
    (*APPLICATIONS, "langdc.cli"),
    ("langdc.train", "langdc.evaluate", "langdc.prepare", "langdc.convert", "langdc.tools", "langdc.conformance"),
    ("langdc.hosts", "langdc.model", "langdc.replies", "langdc.pipeline", "langdc.checkpoint", "langdc.sample"),
    (
        "langdc.backbones",
        "langdc.compressors",
        "langdc.frameselectors",
        "langdc.layercompressors",
        "langdc.kvcompressors",
    ),
    (
        "langdc.adapters",
        "langdc.attention",
        "langdc.captioner",
        "langdc.chunks",
        "langdc.data",
        "langdc.decode",
        "langdc.decoders",
        "langdc.density",
        "langdc.encoders",
        "langdc.features",
        "langdc.flops",
        "langdc.generate",
        "langdc.kvcache",
        "langdc.language_models",
        "langdc.modelfiles",
        "langdc.plots",
        "langdc.prefill",
        "langdc.projectors",
        "langdc.rope",
        "langdc.sources",
        "langdc.steps",
        "langdc.store",
        "langdc.tiny",
        "langdc.video",
        "langdc.videoindex",
        "langdc.walk",
    ),
    (
        "langdc.budget",
        "langdc.compat",
        "langdc.config",
        "langdc.configfiles",
        "langdc.devices",
        "langdc.distributed",
        "langdc.endpoint",
        "langdc.failures",
        "langdc.hashing",
        "langdc.interfaces",
        "langdc.jsonl",
        "langdc.log",
        "langdc.registry",
        "langdc.text",
        "langdc.timing",
        "langdc.types",
        "langdc.watchdog",
    ),
)
ZOOS = (
    "langdc.backbones",
    "langdc.compressors",
    "langdc.frameselectors",
    "langdc.layercompressors",
    "langdc.kvcompressors",
)
FRONT_DOOR = "langdc"  # langdc/__init__.py hands out VideoLM, so it reaches to the top
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

SOURCES = sorted(path for top in ("langdc", *APPLICATIONS) for path in (ROOT / top).rglob("*.py"))


def module_name(path: Path, root: Path = ROOT) -> str:
    """`langdc/video.py` -> `langdc.video`; a package's `__init__` has the package's name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(module: str) -> tuple[int, str] | None:
    """The row (0 is the top) and the entry of `ROWS` a module belongs to: the longest that fits."""
    fits = [(len(entry), row, entry) for row, entries in enumerate(ROWS) for entry in entries if under(module, entry)]
    return max(fits)[1:] if fits else None


def under(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imports(path: Path, root: Path = ROOT) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports, also inside functions; relative imports are resolved."""
    module = module_name(path, root)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                if (base, alias.name) == (FRONT_DOOR, "__version__"):
                    continue
                submodule = (root / base.replace(".", "/") / alias.name).with_suffix(".py")
                is_module = submodule.is_file() or submodule.with_suffix("").is_dir()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


def violations(path: Path, root: Path = ROOT) -> list[str]:
    """What a file imports though it must not, one line each."""
    module = module_name(path, root)
    if module == FRONT_DOOR:
        return []
    own = place(module)
    if own is None:
        return [f"{module} is in no row of tests/test_layers.py; give it one"]
    found = []
    for line, target in imports(path, root):
        reason = _forbidden(module, own, target, path)
        if reason:
            found.append(f"{path.relative_to(root)}:{line} imports {target}: {reason}")
    return found


def _forbidden(module: str, own: tuple[int, str], target: str, path: Path) -> str | None:
    if target.split(".")[0] in APPLICATIONS or (own[0] == 0 and (path.parent / f"{target}.py").is_file()):
        return "applications are imported by nothing"
    if target == FRONT_DOOR:
        return None if own[0] <= 1 else "it reaches to the top row; import the module itself"
    if not under(target, "langdc"):
        return None
    other = place(target)
    if other is None:
        return "it is in no row"
    if other[0] < own[0]:
        return "it stands in a row above"
    return "the zoos do not know each other" if own[1] != other[1] and {own[1], other[1]} <= set(ZOOS) else None


@cache
def _tree(path: Path, changed: int, size: int) -> ast.Module:
    return ast.parse(path.read_text())


def parsed(path: Path) -> ast.Module:
    """A file's syntax tree, made once."""
    found = path.stat()
    return _tree(path, found.st_mtime_ns, found.st_size)


def circle() -> list[str]:
    """Modules of the package that import each other in a circle; empty if none do."""
    modules = {module_name(path): path for path in SOURCES if path.is_relative_to(ROOT / "langdc")}
    graph = {
        name: {target for _, target in imports(path) if target in modules and target not in (name, FRONT_DOOR)}
        for name, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def overlong(path: Path) -> list[str]:
    """Files and functions longer than they may be."""
    text = path.read_text()
    found = [f"{path.name} has {len(text.splitlines())} lines"] if len(text.splitlines()) > MAX_FILE_LINES else []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            found += [f"{path.name}:{node.lineno} {node.name} has {lines} lines"] if lines > MAX_FUNCTION_LINES else []
    return found


def test_modules_import_only_from_their_row_and_rows_below():
    assert len(SOURCES) > 20, "the sources were not found"
    found = [line for path in SOURCES for line in violations(path)]
    assert not found, "\n" + "\n".join(found)


def test_no_modules_import_each_other_in_a_circle():
    assert circle() == []


def test_files_and_functions_stay_short():
    tests = sorted((ROOT / "tests").rglob("*.py"))
    found = [line for path in [*SOURCES, *tests] for line in overlong(path)]
    assert not found, "\n" + "\n".join(found)


def test_the_table_in_the_documents_is_this_one():
    text = (ROOT / "docs/architecture.md").read_text()
    section = text.partition("## Who imports whom")[2].partition("```")[2].partition("```")[0]
    written = [line.partition("|")[0].split() for line in section.strip().splitlines()]
    modules = [{name.rstrip("/").removesuffix(".py").replace("/", ".") for name in row} for row in written]
    assert modules == [set(row) for row in ROWS]


@pytest.mark.parametrize(
    ("file", "code", "reason"),
    [
        ("langdc/video.py", "from langdc.pipeline import VideoLM", "row above"),
        ("langdc/video.py", "import langdc.backbones.chat", "row above"),
        ("langdc/video.py", "from . import pipeline", "row above"),
        ("langdc/compressors/pool.py", "from ..backbones import chat", "do not know each other"),
        ("langdc/compressors/pool.py", "from langdc.backbones.chat import conversation", "do not know each other"),
        ("langdc/captioner.py", "def f():\n    from langdc.model import VideoModel", "row above"),
        ("langdc/types.py", "from langdc import VideoLM", "reaches to the top"),
        ("langdc/model.py", "from train.stage1 import main", "imported by nothing"),
        ("eval/run.py", "from train.stage1 import main", "imported by nothing"),
        ("train/stage2.py", "import stage1", "imported by nothing"),
        ("langdc/newcomer.py", "import math", "in no row"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, code: str, reason: str):
    for name in ("langdc/pipeline.py", "langdc/backbones/chat.py", "langdc/model.py", "train/stage1.py", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file).write_text(code)
    found = violations(tmp_path / file, tmp_path)
    assert len(found) == 1 and reason in found[0], found


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("langdc/compressors/langdc.py", "from langdc.compressors.base import compressors\nfrom . import pool"),
        ("langdc/pipeline.py", "from langdc import checkpoint\nimport torch"),
        ("train/stage1.py", "from langdc import VideoLM, train\nfrom langdc.config import load"),
        ("langdc/__init__.py", "from langdc.pipeline import VideoLM"),
    ],
)
def test_what_the_rule_allows_passes(tmp_path: Path, file: str, code: str):
    for name in ("langdc/checkpoint.py", "langdc/train/__init__.py", "langdc/compressors/pool.py", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file).write_text(code)
    assert violations(tmp_path / file, tmp_path) == []


def test_a_planted_long_function_is_caught(tmp_path: Path):
    path = tmp_path / "long.py"
    body = "\n".join(f"    a{i} = {i}" for i in range(MAX_FUNCTION_LINES))
    path.write_text(textwrap.dedent("def short():\n    return 1\n\n\n") + f"def long():\n{body}\n")
    assert [line.split()[1] for line in overlong(path)] == ["long"]
    path.write_text("x = 1\n" * (MAX_FILE_LINES + 1))
    assert overlong(path) == [f"long.py has {MAX_FILE_LINES + 1} lines"]
