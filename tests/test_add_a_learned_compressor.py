"""docs/add_a_learned_compressor.md does what it says: one short file, which passes the conformance tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from langdc import VideoLM, jsonl
from langdc.sample.dataset import make_dataset

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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data")
    make_dataset(made, {"train": 2, "test": 0}, images=0, workers=1)
    return made


def test_the_pages_config_trains_it_and_it_can_be_asked(folder: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (folder / "gist.yaml").write_text(config)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    changes = [f"train.data=[{data / 'train.jsonl'}]", f"output={tmp_path / 'gist'}", "train.steps=3"]
    command = [sys.executable, "-m", "langdc.train", str(folder / "gist.yaml"), *changes, "log_steps=1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = jsonl.read(tmp_path / "gist" / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss_answer"] + 0.5 * line["loss_reconstruction"], rel=1e-4)
    monkeypatch.syspath_prepend(folder)
    lm = VideoLM.from_pretrained(tmp_path / "gist")
    answer = lm.ask(next(data.rglob("*.mp4")), "what moves ?", max_new_tokens=4)
    assert answer.tokens == 4 * len(answer.segment_tokens) > 0
