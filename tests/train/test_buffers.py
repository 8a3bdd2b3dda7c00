"""A compressor's persistent buffers, such as running means, are part of a model: saved, resumed, exported.

Also: what a compressor of somebody else's may get wrong about its losses and targets is said.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from langdc import checkpoint
from langdc.config import MemberConfig, ModelConfig, RunConfig
from langdc.convert.export import export
from langdc.interfaces import TokenCompressor
from langdc.train import output
from langdc.train.run import train
from langdc.types import Compressed, Context, VideoFeatures, VideoTokens
from tests import tiny
from tests.train import ranks, small
from tests.train.kill import run, run_until
from tests.train.test_deepspeed import environment, launched, zero

RUNNING = "compressor.norm.running_mean"


class Normed(TokenCompressor):
    """A token per time step, normalised by what training has seen; a loss and a target that only some records have."""

    losses = frozenset({"size"})

    def __init__(self, width: int = tiny.BACKBONE_WIDTH, silent: bool = False) -> None:
        super().__init__()
        self.norm, self.silent = nn.BatchNorm1d(width), silent
        self.register_buffer("seen", torch.zeros(width))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        steps = [video.projected[0].values.mean((1, 2)) for video in videos]
        values = self.norm(torch.cat(steps))
        if context.training:
            self.seen += values.detach().mean(0)
        parts = values.split([len(step) for step in steps])
        tokens = [VideoTokens(part, torch.zeros(len(part), dtype=torch.long)) for part in parts]
        known = [part.mean() for part, size in zip(parts, context.targets.get("size", ()), strict=False) if size]
        losses = {"size": (sum(known, torch.zeros(())), len(known))}
        return Compressed(tokens, {} if self.silent else losses)

    def targets(self, record: Any) -> Mapping[str, Any]:
        return {"always": 1, **({"size": 3} if int(record.id[-1]) % 2 else {})}

    def loss_counts(self, targets: Mapping[str, Any]) -> Mapping[str, int]:
        return {"size": int("size" in targets)}


def normed(place: Path, **changes: Any) -> RunConfig:
    backbone = tiny.config().backbone
    compressor = MemberConfig.model_validate({"name": f"{__name__}:Normed", **changes.pop("compressor", {})})
    settings = {"output": str(place), "trainable": ["compressor.*"], "steps": 6, "save_steps": 2, **changes}
    return small.run_config(ModelConfig(backbone=backbone, compressor=compressor), **settings)


def held(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / checkpoint.WEIGHTS)


def test_a_run_saves_them_and_a_later_one_goes_on_from_them(tmp_path: Path):
    first = train(normed(tmp_path / "first"))
    saved = held(first)
    assert saved[RUNNING].any() and saved["compressor.seen"].any() and "compressor.scratch" not in saved
    assert saved["compressor.norm.num_batches_tracked"] == 6
    loaded = checkpoint.load(first)
    assert all(torch.equal(tensor, checkpoint.stored(loaded)[name]) for name, tensor in saved.items())
    later = train(normed(tmp_path / "later", start=str(first)))
    assert held(later)["compressor.norm.num_batches_tracked"] == 12


@pytest.mark.slow
def test_killed_and_started_again_equals_uninterrupted(tmp_path: Path):
    whole, config = train(normed(tmp_path / "whole")), normed(tmp_path / "killed")
    ranks.run_until(1, config, 4)
    found = held(train(config))
    assert all(torch.equal(tensor, found[name]) for name, tensor in held(whole).items())


@pytest.mark.slow
def test_they_are_exported(tmp_path: Path):
    directory = train(normed(tmp_path / "run", verify_save=True))
    export(directory, tmp_path / "out")
    assert torch.equal(held(tmp_path / "out")[RUNNING], held(directory)[RUNNING])


@pytest.mark.slow
def test_deepspeed_resumes_them(tmp_path: Path):
    found = []
    for name in ("whole", "killed"):
        config = normed(tmp_path / name, steps=8, batch_size=1).model_dump(mode="json", exclude_defaults=True)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**config, "log_steps": 1}))
        words = launched(2, ["--module", "langdc.train", tmp_path / f"{name}.yaml", *zero(3)])
        if name == "killed":
            run_until(words, tmp_path / name / output.LOG, 5, env=environment())
        run(words, env=environment())
        found.append(held(tmp_path / name))
    whole, killed = found
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())
    assert json.loads((tmp_path / "killed" / output.FINISHED).read_text())["steps"] == 8


def test_a_target_that_some_records_lack_is_none_for_them(tmp_path: Path):
    model = tiny.model("pool")
    model.compressor = Normed()
    batch = small.batch_of(small.data_of(model, small.run_config(model)))
    assert set(batch["batch"].targets["size"]) == {3, None} and None not in batch["batch"].targets["always"]
    assert batch["counts"]["size"] == 3


def test_a_declared_loss_that_is_not_returned_is_said():
    model = tiny.model("pool")
    model.compressor = Normed(silent=True)
    data = small.data_of(model, small.run_config(model))
    with pytest.raises(ValueError, match="size: losses that are declared and were not returned"):
        small.learner_of(data)(**small.batch_of(data))


def test_a_loss_of_weight_0_may_be_returned():
    model = tiny.model("pool")
    model.compressor = Normed()
    data = small.data_of(model, small.run_config(model))
    learner = small.learner_of(data, {"size": 0.0})
    learner(**small.batch_of(data))
    assert set(learner.parts) == {"answer"}


class Wide(Normed):
    """Its tokens are two too wide."""

    losses = frozenset()

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        (wrong,) = [torch.zeros(1, tiny.BACKBONE_WIDTH + 2)] * len(videos)
        return Compressed([VideoTokens(wrong, torch.zeros(1, dtype=torch.long))])


class Nothing(Normed):
    """It forgets to return."""

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Any:
        return [video.projected[0].values for video in videos]


@pytest.mark.parametrize(
    ("kind", "said"), [(Wide, "width 50; the backbone reads"), (Nothing, "returned list; it returns")]
)
def test_what_a_compressor_returns_is_checked(kind: type[TokenCompressor], said: str):
    model = tiny.model("pool")
    model.compressor = kind()
    data = small.data_of(model, small.run_config(model))
    with pytest.raises(ValueError, match=said):
        small.learner_of(data)(**small.batch_of(data, 0))


@pytest.mark.parametrize("loss", [torch.zeros(()), (torch.zeros(3), 1), (1.0, 1)])
def test_a_loss_is_a_scalar_and_a_count(loss: Any):
    with pytest.raises(ValueError, match="no pair of a sum, a scalar tensor, and a count"):
        Compressed([], {"size": loss})
