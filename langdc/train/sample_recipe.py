"""The sample recipe, which train/stage1.py .. stage3.py run when no config is given; what they need is made first."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from langdc import distributed
from langdc.log import get_logger
from langdc.train import chain, stopping
from langdc.train.stopping import Stopped

logger = get_logger(__name__)

STAGES = {
    "stage1": ["sample/langdc/stage1"],
    "stage2": [f"sample/langdc/stage2_{name}" for name in ("image", "density", "align", "post")],
    "stage3": ["sample/langdc/stage3"],
}


def prepared(stage: str) -> list[str]:
    """The configs of a stage, after its data and the stages before it were made; all processes but the first wait.

    These are made by commands of their own, on one process. ValueError if one of them fails, Stopped if it was stopped.
    """
    own = chain.read(STAGES[stage])
    _make(lambda: not any(link.missing for link in own), ["langdc.cli", "data", "sample", "--out", "data/sample"])
    earlier = [name for before in list(STAGES)[: list(STAGES).index(stage)] for name in STAGES[before]]
    links = chain.read(earlier)
    if links:
        _make(lambda: all(link.finished for link in links), ["langdc.train", *earlier])
    return STAGES[stage]


def _make(there: Callable[[], bool], command: Sequence[str]) -> None:
    if distributed.is_main_process() and not there():
        shown = f"python -m {' '.join(command)}"
        logger.info("First: %s", shown)
        alone = distributed.without_launcher(os.environ)
        code = subprocess.run([sys.executable, "-m", *command], env=alone, check=False).returncode
        if code == 130:
            raise KeyboardInterrupt
        if code == stopping.EXIT_CODE:
            raise Stopped(f"{shown} stopped")
        if code or not there():
            raise ValueError(f"{shown} ended with status {code}; its message is above.")
    while not there():
        time.sleep(0.5)  # the launcher ends all processes when the first one fails
