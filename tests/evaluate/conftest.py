"""One finished evaluation of tiny models, for tests that only look at it; and endpoints for judges."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from langdc.evaluate import tasks
from langdc.evaluate.loop import evaluate
from tests.evaluate import runs
from tests.evaluate.endpoint import Endpoint
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


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Endpoint]]:
    """Starts local servers that judge, and ends them."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = []

    def start(reply: Any) -> Endpoint:
        started.append(Endpoint(reply if callable(reply) else lambda number, body: reply))
        return started[-1]

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()
