"""A phase: it learns, its figures are right, and a kill changes nothing."""

import importlib.util

import pytest

from langdc.train.progress import read_log
from langdc.training.trainer import parameter_groups
from tests.training import toy
from tests.training.kill import fork_until, losses


def killed_at(step, log, *arguments, **options):
    """Train in a process of its own and kill it once the log has the step; returns the last step logged."""
    fork_until(lambda: any(line["step"] >= step for line in read_log(log)), toy.train, *arguments, **options)
    return read_log(log)[-1]["step"]


def test_it_learns_and_counts(tmp_path):
    found = toy.train(
        toy.settings(tmp_path / "x", {"steps": 60, "schedule": "constant", "learning_rate": 1e-2}), items=10
    )
    lines = read_log(tmp_path / "x" / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert found["steps"] == 60 and found["samples"] == 20 * 10  # three steps of 4, 4 and 2 rows an epoch
    assert found["flops"] == lines[-1]["flops"] > 0
    assert not list((tmp_path / "x").glob("resume/*"))


@pytest.mark.parametrize(
    ("step", "accumulation"), [(6, 1), (9, 1), (5, 2)], ids=["mid-epoch", "epoch-end", "accumulated"]
)
def test_killed_and_started_again_equals_uninterrupted(tmp_path, step, accumulation):
    # 24 rows in steps of 4 or, accumulated, 8: a checkpoint every fourth or, at the end of an epoch, third step
    overrides = {"steps": 14, "gradient_accumulation": accumulation}
    stage = {"save_steps": 3 if step == 9 else 4}
    whole, cut = (toy.settings(tmp_path / name, overrides, **stage) for name in ("whole", "cut"))
    expected = toy.train(whole, items=12 if step == 9 else 24)
    log = tmp_path / "cut" / "log.jsonl"
    last = killed_at(step, log, cut, items=12 if step == 9 else 24, slow=0.02)
    assert step <= last < 14
    found = toy.train(cut, items=12 if step == 9 else 24)
    assert losses(log) == losses(tmp_path / "whole" / "log.jsonl")
    assert len(losses(log)) == 14
    assert found["hash"] == expected["hash"]
    assert (found["samples"], found["flops"]) == (expected["samples"], expected["flops"])


def test_averaged_log_lines_survive_a_kill_too(tmp_path):
    stage = {"log_steps": 5, "save_steps": 4}
    toy.train(toy.settings(tmp_path / "whole", {"steps": 14}, **stage))
    cut = toy.settings(tmp_path / "cut", {"steps": 14}, **stage)
    killed_at(5, tmp_path / "cut" / "log.jsonl", cut, slow=0.02)
    toy.train(cut)
    found = losses(tmp_path / "cut" / "log.jsonl")
    assert [step for _, step in found] == [4, 5, 8, 10, 12, 14]
    assert found == losses(tmp_path / "whole" / "log.jsonl")


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    config = toy.settings(tmp_path / "x", {"steps": 14}, keep_checkpoints=3)
    killed_at(9, tmp_path / "x" / "log.jsonl", config, slow=0.02)
    kept = sorted((tmp_path / "x" / "resume" / "toy").iterdir())
    assert [path.name for path in kept] == ["checkpoint-4", "checkpoint-8"]
    assert not (kept[-1] / "model.safetensors").exists()
    assert (kept[-1] / "trained.safetensors").stat().st_size < 4 * 130_000  # 127,552 trained of 133,696 parameters
    (kept[-1] / "complete").unlink()
    (kept[-1] / "optimizer.pt").write_bytes(b"")
    whole = toy.train(toy.settings(tmp_path / "whole", {"steps": 14}))
    assert toy.train(config)["hash"] == whole["hash"]


def test_accumulated_batches_equal_large_ones(tmp_path):
    large = toy.train(toy.settings(tmp_path / "large", {"batch_size": 4}), dropout=0.0)
    small = toy.train(toy.settings(tmp_path / "small", {"batch_size": 2, "gradient_accumulation": 2}), dropout=0.0)
    found, expected = (losses(tmp_path / name / "log.jsonl") for name in ("small", "large"))
    assert found == pytest.approx(expected, abs=1e-5)
    assert small["samples"] == large["samples"]


def test_projectors_have_their_own_rate_and_norms_no_decay():
    model = toy.Toy(0.0)
    model.language_model.model.embed_tokens.weight.requires_grad_(False)
    decayed = [name for name, _ in model.named_parameters() if "norm" not in name and "bias" not in name]
    groups = parameter_groups(model, decayed, 0.1, 1e-3, 5e-5)
    found = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    # weight and bias of the projector; per layer seven matrices, three biases, two norms; the last norm
    assert found == {(5e-5, 0.1): 1, (5e-5, 0.0): 1, (1e-3, 0.1): 14, (1e-3, 0.0): 11}
    assert len(parameter_groups(model, decayed, 0.1, 1e-3, None)) == 2


def test_what_this_machine_cannot_do_is_said(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(ValueError, match=r"schedule: 'cosin' is none.*'cosine'"):
        toy.train(toy.settings(tmp_path / "x", {"schedule": "cosin"}))
    with pytest.raises(ValueError, match=r"trackers: tensorboard is not installed"):
        toy.train(toy.settings(tmp_path / "y", trackers=["tensorboard"]))
