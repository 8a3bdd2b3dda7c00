"""The commands do what they print, with exit codes that a script can use."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.evaluate import runs

ROOT = Path(__file__).resolve().parents[2]


def _application(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"eval_{name}", ROOT / "eval" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN, TABLE = _application("run"), _application("table")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config of two rows on a video, written as a user would."""
    runs.prepare(tmp_path)
    path = tmp_path / "eval.yaml"
    tree = runs.config(tmp_path, limit=2).model_dump(mode="json")
    path.write_text(yaml.safe_dump({**tree, "entries": tree["entries"][:2]}))
    return path


def test_evaluate_then_tabulate(config: Path, capsys: pytest.CaptureFixture[str]):
    out = config.parent / "eval"
    assert RUN.main(["--config", str(config), "max_new_tokens=2"]) == 0
    assert f"langdc report {out}" in capsys.readouterr().out
    assert TABLE.main([str(out)]) == 0
    printed = capsys.readouterr().out
    assert "langdc" in printed and "pool 3" in printed and "majority" in printed  # a row's name may be two lines
    assert "| majority answer |" in (out / "table.md").read_text()
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        ".lock", "header.json", "report.html", "table.csv", "table.md",
    }  # fmt: skip
    assert TABLE.main([str(out), "--html", str(config.parent / "pages" / "mine.html"), "--reference", "langdc"]) == 0
    assert (config.parent / "pages" / "mine.html").read_text().startswith("<!doctype html>")


def test_failed_answers_are_exit_code_1(config: Path, capsys: pytest.CaptureFixture[str]):
    (config.parent / "data" / "videos" / "v0.mp4").write_bytes(b"")
    assert RUN.main(["--config", str(config)]) == 1
    assert "answers failed" in capsys.readouterr().err


def test_mistakes_are_exit_code_2_and_one_line(config: Path, capsys: pytest.CaptureFixture[str]):
    assert RUN.main(["--config", str(config), "limt=2"]) == 2
    assert "Did you mean 'limit'" in capsys.readouterr().err
    assert TABLE.main([str(config.parent / "data")]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
