"""A loss or gradient that is NaN or infinite ends the run at once, by name, and no such weight is ever saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from langdc.train import output
from langdc.train import trainer as trainers
from langdc.train.trainable import unfreeze
from tests import tiny
from tests.train import small

LAYER = "backbone.language_model.model.layers.1.mlp"


def trainer_of(place: Path, **changes: Any) -> trainers.RunTrainer:
    model = tiny.model("pool", sides=[3, 0])
    unfreeze(model, ["backbone.projectors.*"])
    settings = {"steps": 9, "save_steps": 2, "log_steps": 50, "keep_checkpoints": 9, **changes}
    return small.trainer_of(small.data_of(model, small.run_config(model, **settings)), place)


def spoil(trainer: trainers.RunTrainer, step: int, value: float, gradient: bool = False) -> None:
    """From this step on a layer gives, or gets back, what is not finite."""

    def change(module: Any, given: Any, made: Tensor) -> Tensor:
        if trainer.learner.step + 1 < step:
            return made
        if gradient:
            made.register_hook(lambda found: found * value)
            return made
        return made * value

    trainer.learner.model.get_submodule(LAYER).register_forward_hook(change)


@pytest.mark.parametrize("step", [4, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("gradient", [False, True])
def test_it_stops_by_name_and_keeps_the_last_good_checkpoint(tmp_path: Path, step: int, value: float, gradient: bool):
    """Step 4 would be saved."""
    trainer = trainer_of(tmp_path / "x")
    spoil(trainer, step, value, gradient)
    seen = trainer.learner
    with pytest.raises(ValueError, match=f"NaN or infinite at step {step}") as caught:
        trainer.train()
    message = str(caught.value)
    assert LAYER in message and "train.jsonl: line" in message and "another output" in message
    assert ("the gradient at the output of" in message) == gradient
    assert seen.step + 1 == step and trainer.state.global_step <= step, "no more than the next step was begun"
    kept = output.checkpoints(tmp_path / "x")
    assert [path.name for path in kept] == [f"checkpoint-{n}" for n in range(2, step, 2)]
    assert all(tensor.isfinite().all() for tensor in load_file(kept[-1] / trainers.TRAINED).values())
    ours = trainer.trained()
    assert all(each.isfinite().all() for each in ours.values()), "the step changed nothing"
    if step == 5:
        saved = load_file(kept[-1] / trainers.TRAINED)
        assert all(torch.equal(each, saved[name]) for name, each in ours.items())
