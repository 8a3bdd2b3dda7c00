"""One finished evaluation of tiny models, for tests that only look at it."""

import shutil
from pathlib import Path

import pytest

from langdc.evaluate import tasks
from langdc.evaluate.loop import evaluate
from tests.evaluate import runs
from tests.evaluate.place import Place


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and models, never written to."""
    return runs.prepare(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="session")
def finished(prepared: Path) -> Path:
    """The output folder of an evaluation of all rows, never written to."""
    config = runs.config(prepared)
    return evaluate(config, tasks.build(config.task.name, **config.task.settings), ["test"]).directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished evaluation."""
    return Path(shutil.copytree(finished, tmp_path / "eval"))


@pytest.fixture
def place(prepared: Path, tmp_path: Path) -> Place:
    """A small run that may be broken."""
    return Place(tmp_path, prepared)
