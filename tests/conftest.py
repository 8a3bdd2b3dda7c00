"""What all tests share: no accelerator but for those marked `gpu`, one thread per process, one real sample video."""

import argparse
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# Accelerators are hidden from this process and all that it starts before langdc, which looks for them, is imported,
# unless tests that need one were chosen by `-m gpu`; workers of xdist heed their parent. The stand-in of
# tests/fake_cuda stays visible: it is there to find what takes a device because the machine has one.
_options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
_options.add_argument("-m", default="")
_gpu_chosen = re.search(r"(?<!not )\bgpu\b", _options.parse_known_args()[0].m)
if not _gpu_chosen and "PYTEST_XDIST_WORKER" not in os.environ and "fake_cuda" not in sys.modules:
    os.environ.update(CUDA_VISIBLE_DEVICES="", ASCEND_RT_VISIBLE_DEVICES="")

# nothing of a test is on the hub, and asking a name server that does not answer takes 5 seconds
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from langdc.sample.render import draw_video  # noqa: E402
from langdc.sample.scenes import FPS  # noqa: E402
from langdc.sample.scenes import sample_video as sample_scenes  # noqa: E402
from langdc.video import write_video  # noqa: E402
from tests.endpoint import Endpoint  # noqa: E402

torch.set_num_threads(1)
# What is tested heeds this and opens no thread pool; a process forked beside one waits for ever at its first product.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first: at the end one worker would wait for the other."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def pytest_collection_finish() -> None:
    """What is imported by now stays; every phase of a training collects garbage, and would look through all of it."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a GPU where there is none, or where it is hidden."""
    if item.get_closest_marker("gpu") and not torch.accelerator.is_available():
        pytest.skip("needs an accelerator, which all runs hide but those of `pytest -m gpu`")


@pytest.fixture(scope="session")
def sample_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One mp4 of the sample set's kind: 16 frames, 64x64, 8 fps, 4 segments of 4 frames."""
    rng = np.random.default_rng(7)
    path = tmp_path_factory.mktemp("sample") / "video.mp4"
    write_video(path, draw_video(sample_scenes(rng), rng), FPS)
    return path


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Endpoint]]:
    """Starts local servers that speak the protocol of OpenAI-compatible endpoints, and ends them."""
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
