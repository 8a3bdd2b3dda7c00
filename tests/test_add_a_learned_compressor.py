"""docs/add_a_learned_compressor.md does what it says: one short file, which passes the conformance tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "add_a_learned_compressor.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("third_party")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (made / "gist.py").write_text(code)
    return made


def conformance(folder: Path, name: str, *more: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = (sys.executable, "-m", "pytest", "-q", "--pyargs", "langdc.conformance", "--compressor", name, *more)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_is_one_short_file(folder: Path) -> None:
    assert len((folder / "gist.py").read_text().splitlines()) <= 80


BROKEN = {
    "test_only_what_is_wanted": ('if "reconstruction" not in context.wanted:', "if False:"),
    "test_gradients": ("means, targets = self.gists(),", "means, targets = self.gists().detach(),"),
    "test_training_draws": ("torch.cat(found), segment", "torch.cat(found) * (1 + torch.rand(1)), segment"),
    "test_losses_of_a_batch": ("error = sum(", "error = 1 / len(videos) * sum("),
}
"""By test, a change of the page's code that breaks a promise."""


def test_it_passes_the_conformance_tests_and_broken_ones_fail(folder: Path) -> None:
    """All in one process, which takes longer to start than to test."""
    text, options = (folder / "gist.py").read_text(), []
    for test, change in BROKEN.items():
        assert change[0] in text
        (folder / f"{test}.py").write_text(text.replace(*change))
        options += ["--compressor", f"{test}:Gist"]
    done = conformance(folder, "gist:Gist", *options, "-rA")
    outcomes = re.findall(r"^(PASSED|FAILED) \S*::(\w+)\[(?:\S+-)?(\w+):Gist", done.stdout, re.MULTILINE)
    failed = [(test, module) for outcome, test, module in outcomes if outcome == "FAILED"]
    passed = [test for outcome, test, module in outcomes if outcome == "PASSED" and module == "gist"]
    assert len(passed) > 12, done.stdout[-3000:] + done.stderr[-2000:]
    assert {module for _, module in failed} == set(BROKEN), done.stdout[-3000:]
    for test in BROKEN:
        assert any(name.startswith(test) for name, module in failed if module == test), (test, failed)
