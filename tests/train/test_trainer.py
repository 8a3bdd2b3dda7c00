"""The Trainer of runs: losses over the whole step, equal batches on any number of processes, exact resumption."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import BatchSampler

from langdc.train import output
from langdc.train import trainer as trainers
from langdc.train.trainable import unfreeze
from langdc.train.trainer import EvenBatchSampler
from tests import tiny
from tests.train import small


def learning(**changes):
    """LangDC with two losses on videos, images and text, ragged in all of them."""
    model = small.langdc()
    unfreeze(model, ["compressor.*"])
    settings = {"objective": "answer", "clip": 1e6, "learning_rate": 1e-3, **changes}
    return small.data_of(model, small.run_config(model, "train", "images", "text", **settings))


def trained(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.trained().items()}


@pytest.mark.parametrize(("size", "accumulation", "checkpointing"), [(2, 3, False), (3, 2, True)])
def test_a_step_is_the_same_however_it_is_divided(tmp_path: Path, size: int, accumulation: int, checkpointing: bool):
    """Also the last step of an epoch, which has less than the others."""
    whole = small.train(learning(batch_size=6, steps=5), tmp_path / "whole", weights={"caption": 0.5})
    data = learning(batch_size=size, gradient_accumulation=accumulation, steps=5)
    if checkpointing:
        for part in (data.model.backbone.language_model, data.model.compressor.captioner.language_model):
            part.gradient_checkpointing_enable({"use_reentrant": False})
    parts = small.train(data, tmp_path / "parts", weights={"caption": 0.5})
    assert len(data) % 6, "an epoch leaves a rest"
    for name in ("loss", "loss_answer", "loss_caption"):
        found, expected = (small.losses(each, name) for each in (parts, whole))
        assert len(found) == 5 and found == pytest.approx(expected, abs=1e-5)
    answer, caption = (small.losses(whole, name) for name in ("loss_answer", "loss_caption"))
    assert small.losses(whole) == pytest.approx([a + 0.5 * c for a, c in zip(answer, caption, strict=True)], abs=1e-5)
    ours, theirs = trained(parts), trained(whole)
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)


def test_a_count_that_was_not_announced_averages_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And says so; nothing else changes."""
    warned: list[str] = []
    monkeypatch.setattr("langdc.train.learner.logger.warning", lambda text, *values: warned.append(text % values))
    data = learning(batch_size=1, gradient_accumulation=2, steps=1)
    monkeypatch.setattr(type(data.model.compressor), "loss_counts", lambda self, targets: {"caption": 1})
    found = small.train(data, tmp_path)
    assert len(warned) == 1 and "caption over" in warned[0] and "loss_counts" in warned[0]
    indices = [index for batch in list(found.batches)[:2] for index in batch]
    fresh = learning(batch_size=1)
    learner = small.learner_of(fresh)
    means, total, count = [], 0.0, 0
    for index in indices:
        learner(**small.batch_of(fresh, index))
        if "caption" in learner.parts:
            means.append(float(learner.parts["caption"][0]) / learner.parts["caption"][1])
        total, count = total + float(learner.parts["answer"][0]), count + learner.parts["answer"][1]
    assert small.losses(found) == pytest.approx([total / count + sum(means) / 2], rel=1e-4)


@pytest.mark.parametrize("step", [2, 3])
def test_resumed_is_bit_equal(tmp_path: Path, step: int):
    """In the middle of an epoch and at its end, with random numbers of the step and dropout of adapters."""
    settings = {"batch_size": 5, "steps": 6, "save_steps": step, "keep_checkpoints": 9}
    whole = small.train(learning(**settings), tmp_path / "whole")
    assert [path.name for path in output.checkpoints(tmp_path / "whole")] == [
        f"checkpoint-{n}" for n in range(step, 6, step)
    ]
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / f"checkpoint-{step}").rename(tmp_path / "cut" / f"checkpoint-{step}")
    torch.manual_seed(99)
    again = small.train(learning(**settings), tmp_path / "cut", resume=True)
    assert small.losses(again)[-1] == small.losses(whole)[-1]
    ours, theirs = trained(again), trained(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_holds_what_is_trained_alone(tmp_path: Path):
    data = learning(steps=3, save_steps=1, keep_checkpoints=1)
    small.train(data, tmp_path)
    (kept,) = output.checkpoints(tmp_path)
    assert kept.name == "checkpoint-2", "none after the last step, whose weights the run saves at once"
    assert set(load_file(kept / trainers.TRAINED)) == {
        f"model.{name}" for name, parameter in data.model.named_parameters() if parameter.requires_grad
    }
    other = learning(steps=3)
    unfreeze(other.model, ["compressor.projectors.*"])
    with pytest.raises(ValueError, match="holds other trained tensors than this run"):
        small.train(other, tmp_path, resume=True)


def test_steps_get_their_progress_and_draws():
    data = learning()
    learner = small.learner_of(data)
    draws = []
    for step in (0, 0, 3):
        learner.begin_step(step, 6)
        context = learner.context()
        draws.append((context.progress, torch.rand(2, generator=context.generator).tolist()))
    assert draws[0] == draws[1] and draws[0][1] != draws[2][1] and draws[2][0] == 0.5
    other = small.learner_of(learning(seed=1))
    other.begin_step(0, 6)
    assert torch.rand(2, generator=other.context().generator).tolist() != draws[0][1]


# ---- batches


def batches(items: int, size: int, processes: int, epoch: int = 0) -> list[list[list[int]]]:
    """Those of each process."""
    found = []
    for rank in range(processes):
        sampler = EvenBatchSampler(items, size, 0)
        sampler.rank, sampler.processes, sampler.epoch = rank, processes, epoch
        found.append(list(sampler))
        assert len(sampler) == len(found[-1])
    return found


@pytest.mark.parametrize("items", range(1, 14))
@pytest.mark.parametrize(("size", "processes"), [(2, 2), (4, 1), (1, 3), (3, 2)])
def test_a_step_holds_the_same_samples_on_any_number_of_processes(items: int, size: int, processes: int):
    found = batches(items, size, processes)
    assert all(len(batch) <= size and batch for rank in found for batch in rank)
    steps = [[i for batch in step for i in batch if i >= 0] for step in zip(*found, strict=True)]
    order = [i for step in batches(items, size * processes, 1)[0] for i in step]
    assert steps == [list(batch) for batch in BatchSampler(order, size * processes, False)]
    assert sorted(order) == list(range(items))


def test_epochs_have_their_own_order_which_is_that_of_accelerate():
    from accelerate.data_loader import SeedableRandomSampler

    for epoch in (0, 3):
        sampler = SeedableRandomSampler(range(9), data_seed=0)
        sampler.set_epoch(epoch)
        assert [i for batch in batches(9, 2, 1, epoch)[0] for i in batch] == list(sampler)


def test_what_is_left_is_divided_and_none_goes_without(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "randperm", lambda items, **_: torch.arange(items))
    assert [rank[-1] for rank in batches(7, 2, 2)] == [[4, 5], [6]]
    assert [rank[-1] for rank in batches(8, 7, 3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [rank[-1] for rank in batches(1, 2, 3)] == [[0], [-1], [-1]]


# ---- parameters


def test_rates_are_chosen_by_pattern_and_norms_have_no_decay(tmp_path: Path):
    model = tiny.model("pool")
    unfreeze(model, ["backbone.projectors.*", "backbone.language_model.model.layers.*"])
    config = small.run_config(model, steps=1, weight_decay=0.1, rates={"*projectors.image*": 5e-5, "*projector*": 1e-4})
    groups = small.trainer_of(small.data_of(model, config), tmp_path).groups()
    found = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    # two matrices and two biases in each projector; three layers of seven matrices, three biases, two norms
    assert found == {(5e-5, 0.1): 2, (5e-5, 0.0): 2, (1e-4, 0.1): 2, (1e-4, 0.0): 2, (1e-3, 0.1): 21, (1e-3, 0.0): 15}
    config = small.run_config(model, rates={"captioner.*": 1.0})
    with pytest.raises(ValueError, match=r"train\.rates: 'captioner\.\*' matches no trained parameter"):
        small.trainer_of(small.data_of(model, config), tmp_path).groups()


def test_the_optimizer_is_torchs_fused_adamw(tmp_path: Path):
    """Three steps of it are those of the formula, as torch's other implementation has it."""
    model = tiny.model("pool")
    unfreeze(model, ["backbone.projectors.*"])
    trainer = small.trainer_of(small.data_of(model, small.run_config(model)), tmp_path)
    optimizer: Any = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    other = [parameter.detach().clone() for parameter in own]
    groups, place = [], iter(other)
    for group in optimizer.param_groups:
        groups.append({**group, "params": [next(place) for _ in group["params"]], "fused": False})
    plain = torch.optim.AdamW(groups)
    for step in range(3):
        torch.manual_seed(step)
        for one, same in zip(own, other, strict=True):
            one.grad = torch.randn_like(one)
            same.grad = one.grad.clone()
        optimizer.step()
        plain.step()
    for one, same in zip(own, other, strict=True):
        torch.testing.assert_close(one.detach(), same, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_logs_and_saves_as_often_as_its_settings_say_now(tmp_path: Path):
    settings = {"batch_size": 5, "steps": 6, "keep_checkpoints": 9}
    small.train(learning(save_steps=2, log_steps=2, **settings), tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = small.train(learning(save_steps=1, log_steps=1, **settings), tmp_path, resume=True)
    assert [path.name for path in output.checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in range(2, 6)]
    assert [line["step"] for line in again.state.log_history if "loss" in line] == [2, 3, 4, 5, 6]
