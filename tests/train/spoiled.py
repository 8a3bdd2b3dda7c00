"""A run whose language model gives NaN from a step on, in one process: `python spoiled.py CONFIG STEP RANK`."""

import os
import sys
from typing import Any

from torch import Tensor

from langdc.train import run
from langdc.train.learner import Learner

LAYER = "backbone.language_model.model.layers.1.mlp"


class Spoiled(Learner):
    """From the step on its layer gives NaN in training."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.model.get_submodule(LAYER).register_forward_hook(self._change)

    def _change(self, module: Any, given: Any, made: Tensor) -> Tensor:
        bad = self.training and self.step + 1 >= int(sys.argv[2]) and os.environ.get("RANK", "0") == sys.argv[3]
        return made * float("nan") if bad else made


if __name__ == "__main__":
    run.Learner = Spoiled
    sys.exit(run.main([sys.argv[1]]))
