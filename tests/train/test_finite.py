"""A loss or gradient that is NaN or infinite ends the run at once, by name, and no such weight is ever saved."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from langdc import config as settings
from langdc.config import RunConfig
from langdc.train import output
from langdc.train import trainer as trainers
from langdc.train.run import train
from langdc.train.trainable import unfreeze
from langdc.train.validation import Validation
from tests import tiny
from tests.train import ranks, small, spoiled
from tests.train.spoiled import LAYER


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
    assert (
        LAYER in message
        and "train.jsonl: line" in message
        and "another output" in message
        and "\nThe same command" in message
    )
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


def test_what_comes_in_broken_is_said_of_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = trainer_of(tmp_path, batch_size=1)
    kept, bad = trainer.data.features.kept, trainer.data.samples[3]

    def spoiled(spec: Any) -> Any:
        grids, seconds = kept(spec)
        broken = {n: replace(grid, values=grid.values * torch.inf) for n, grid in grids.items()}
        return (broken if spec in bad.specs else grids), seconds

    monkeypatch.setattr(trainer.data.features, "kept", spoiled)
    with pytest.raises(ValueError, match="not finite: model, whose input was not finite already") as caught:
        trainer.train()
    assert bad.where in str(caught.value) and str(caught.value).count("train.jsonl: line") == 1


def test_in_float16_gradients_may_overflow_and_losses_may_not(tmp_path: Path):
    trainer = trainer_of(tmp_path)
    batches, fine, bad = [small.batch_of(trainer.data, 0)], torch.ones(()), torch.tensor(torch.nan)
    for _ in range(5):
        assert not trainer.finite.note(batches, [fine, fine], None)
    trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: 1.0)  # pyright: ignore[reportAttributeAccessIssue]
    trainer.log({"loss": 1.0})
    trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: 0.5)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="In float16 the gradients overflow with every scale"):
        trainer.log({"loss": 1.0})
    assert trainer.finite.note(batches, [fine, bad], None)
    with pytest.raises(ValueError, match=r"(?s)The loss is NaN.*Computed again, all is finite.*line 1 "):
        trainer.finite.check()


@pytest.mark.parametrize("gradient", [False, True])
def test_with_a_loss_scale_a_loss_that_is_not_finite_stops_at_the_next_step(tmp_path: Path, gradient: bool):
    """A gradient that overflows is left to the scaler, torch's own, which works on a CPU, too."""
    trainer = trainer_of(tmp_path / "x")
    trainer.args.fp16 = True
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu")  # pyright: ignore[reportAttributeAccessIssue]
    spoil(trainer, 3, float("nan"), gradient)
    if gradient:
        trainer.train()
        assert trainer.state.global_step == 9 and scaler.get_scale() == 2**16 / 2**7
        return
    with pytest.raises(ValueError, match=f"The loss is NaN or infinite at step 3.*{LAYER}"):
        trainer.train()
    assert trainer.state.global_step == 3 and scaler.get_scale() >= 2**14


def test_a_norm_that_deepspeed_gives_is_read_at_once(tmp_path: Path):
    trainer = trainer_of(tmp_path)
    with pytest.raises(ValueError, match="its gradients are NaN or infinite at step 1"):
        trainer.finite.note([small.batch_of(trainer.data, 0)], [torch.ones(())], float("inf"))


def test_weights_that_are_not_finite_are_never_a_checkpoint(tmp_path: Path):
    """Of a parameter that no loss depends on."""
    trainer = trainer_of(tmp_path)
    name, part = next(iter(trainer.trained().items()))
    trainer.add_callback(_Ruin(part))
    with pytest.raises(ValueError, match=f"{name}, are NaN or infinite after step 2, which is not saved"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


class _Ruin(TrainerCallback):
    def __init__(self, part: torch.nn.Parameter) -> None:
        self.part = part

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.part.data.view(-1)[0] = torch.nan


def test_a_validation_loss_that_is_not_finite_names_module_and_record(tmp_path: Path):
    model = tiny.model("pool", sides=[3, 0])
    held_out = {"data": [str(small.folder() / "test.jsonl")], "every": 2}
    config = small.run_config(model, output=str(tmp_path / "x"), trainable=["backbone.projectors.*"], batch_size=1)
    tree = config.model_dump(mode="json")
    tree["train"]["validation"] = held_out
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        own = Validation._batch

        def spoiled(self: Any, indices: Any) -> Any:
            batch = own(self, indices)
            broken = [
                {n: replace(g, values=g.values * torch.nan) for n, g in raw.items()} for raw in batch["batch"].raw
            ]
            return batch | {"batch": replace(batch["batch"], raw=broken)} if indices == [1] else batch

        patch.setattr(Validation, "_batch", spoiled)
        with torch.enable_grad(), pytest.raises(ValueError, match="The validation loss is nan at step 2") as caught:
            train(settings.check(RunConfig, tree, "test"))
    message = str(caught.value)
    assert "whose input was not finite already" in message and "test.jsonl: line 2 " in message
    assert "line 1 " not in message and not list((tmp_path / "x").rglob("best*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_all_processes_stop_with_one_message(varied: Path, tmp_path: Path, kind: str):
    """The second process alone gives NaN."""
    zero = {"zero2": 2, "zero3": 3}.get(kind)
    (config,) = ranks.changed(ranks.recipe("stage1_backbone", varied, tmp_path), tmp_path / "x", zero, batch_size=2)
    settings.save(config.model_copy(update={"log_steps": 50, "save_steps": 2}), tmp_path / "config.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in ("0", "1"):
        here = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ranks.ROOT)}
        command = [sys.executable, spoiled.__file__, str(tmp_path / "config.yaml"), "5", "1"]
        started.append(subprocess.Popen(command, env=here, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=ranks.LIMIT)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, 2], said
    errors = [text[text.index("error: ") :].strip() for text in said]
    assert errors[0] == errors[1] and "[process 1] error: " in said[1], "a launcher ends it before it says so"
    assert "NaN or infinite at step 5" in errors[0] and f"not finite: {LAYER}" in errors[0] and "line" in errors[0]
    place = output.checkpoints(config.output / output.RESUME)[-1]
    assert place.name == "checkpoint-4" and (place / output.COMPLETE).is_file()
