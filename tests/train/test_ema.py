"""The average of the trained tensors: by the formula, saved in place of the last ones, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from langdc import checkpoint, jsonl
from langdc.config import RunConfig
from langdc.train import output, run
from langdc.train import trainer as trainers
from langdc.train.run import train
from langdc.train.trainer import RunTrainer
from tests.train import small

DECAY = 0.6


def learning(place: Path, **changes: Any) -> RunConfig:
    settings = {"trainable": ["compressor.post_projector.*"], "steps": 6, "log_steps": 1, "output": str(place)}
    return small.run_config(small.langdc(), "train", "text", **{**settings, **changes})


def test_the_average_by_the_formula_is_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(RunTrainer):
        def get_batch_samples(self, *arguments: Any) -> tuple:
            if self.state.global_step == len(seen):
                seen.append({name: each.detach().double() for name, each in self.trained().items()})
            return super().get_batch_samples(*arguments)

        def averaged(self) -> Any:
            seen.append({name: each.detach().double() for name, each in self.trained().items()})
            return super().averaged()

    monkeypatch.setattr(run, "RunTrainer", Watched)
    directory = train(learning(tmp_path / "x", ema=DECAY))
    assert len(seen) == 7, "before each of six steps, and after the last"
    wanted = seen[0]
    for step, now in enumerate(seen[1:], 1):
        decay = min(DECAY, (1 + step) / (10 + step))
        wanted = {name: decay * each + (1 - decay) * now[name] for name, each in wanted.items()}
    saved = load_file(directory / checkpoint.WEIGHTS)
    for name, each in wanted.items():
        torch.testing.assert_close(saved[name.removeprefix("model.")].double(), each, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(each, seen[-1][name], atol=1e-5), "it is not the last one"
    assert checkpoint.read_manifest(directory)["ema"] == DECAY


def test_averaging_changes_nothing_that_is_learned(tmp_path: Path):
    with_it, without = (train(learning(tmp_path / name, ema=ema)) for name, ema in (("x", DECAY), ("y", None)))
    losses = [[line["loss"] for line in jsonl.read(directory / output.LOG)] for directory in (with_it, without)]
    assert losses[0] == losses[1]
    assert "ema" not in checkpoint.read_manifest(without)


def test_a_checkpoint_has_the_averages_and_resumed_they_are_bit_equal(tmp_path: Path):
    def data() -> Any:
        config = learning(tmp_path, ema=DECAY, save_steps=3, keep_checkpoints=9)
        model = small.langdc()
        model.requires_grad_(False)
        model.compressor.post_projector.requires_grad_(True)
        return small.data_of(model, config)

    whole = small.train(data(), tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "cut" / "checkpoint-3")
    kept = load_file(tmp_path / "cut" / "checkpoint-3" / trainers.EMA)
    assert set(kept) == set(whole.trained())
    again = small.train(data(), tmp_path / "cut", resume=True)
    assert again.ema is not None and whole.ema is not None
    pairs = zip(again.ema.values, whole.ema.values, kept.values(), strict=True)
    assert all(torch.equal(one, other) and not torch.equal(one, early) for one, other, early in pairs)
