"""In bfloat16 frozen parts are held in that type, trained ones in float32; what is saved is as exact as ever."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from langdc import checkpoint, jsonl
from langdc import config as settings
from langdc.config import RunConfig
from langdc.model import VideoModel
from langdc.sample.dataset import make_dataset
from langdc.train import output
from langdc.train.objectives import objectives
from langdc.train.run import train
from langdc.train.setup import RunModel
from tests.train import ranks, small
from tests.train.kill import losses

PROJECTORS = ["compressor.projectors.*"]
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0}
CAPTIONER = "compressor.captioner.language_model.model."


def captions(place: Path, model: VideoModel | None = None, **changes: Any) -> RunConfig:
    settings = {"objective": "compress", "output": str(place), "trainable": PROJECTORS, "steps": 5}
    settings |= {"precision": "bfloat16", "features_dtype": "float32"}
    return small.run_config(model or small.langdc(), "train", **{**settings, **changes})


def built(config: RunConfig) -> RunModel:
    torch.manual_seed(config.seed)
    return RunModel.of(config, objectives.build(config.objective.name, **config.objective.settings))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_frozen_parts_are_held_in_the_type_they_compute_in(tmp_path: Path, precision: str):
    run = built(captions(tmp_path, precision=precision))
    frozen = torch.bfloat16 if precision == "bfloat16" else torch.float32
    for name, parameter in run.model.named_parameters():
        assert parameter.dtype == (torch.float32 if name in run.trained else frozen), name
    assert all(buffer.dtype != torch.bfloat16 for buffer in run.model.buffers()), "such as rotary frequencies"


def test_what_is_saved_of_frozen_parts_is_what_was_drawn_to_the_last_bit(tmp_path: Path):
    drawn = {
        name: tensor.clone() for name, tensor in built(captions(tmp_path, precision="float32")).initialised.items()
    }
    directory = train(captions(tmp_path / "x"))
    saved = load_file(directory / checkpoint.WEIGHTS)
    assert saved.keys() == drawn.keys() and {tensor.dtype for tensor in saved.values()} == {torch.float32}
    changed = {name for name, tensor in saved.items() if not torch.equal(tensor, drawn[name])}
    assert changed and all(name.startswith("compressor.projectors.") for name in changed)


def test_what_an_earlier_run_froze_is_trained_from_the_float32_values_of_its_file(tmp_path: Path):
    """The captioner is frozen for two runs, in bfloat16, and trained by the third."""
    first = train(captions(tmp_path / "1"))
    second = train(captions(tmp_path / "2", start=str(first)))
    third = built(captions(tmp_path / "3", start=str(second), trainable=["compressor.captioner.*"]))
    written = load_file(first / checkpoint.WEIGHTS)
    found = {name: tensor for name, tensor in third.model.named_parameters() if name in third.trained}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in found.values())
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, written[name]), name


def test_adapters_learn_on_frozen_bfloat16_and_are_merged_into_exact_weights(tmp_path: Path):
    config = captions(tmp_path / "x", compressor_lora=LORA, trainable=[])
    run = built(config)
    base = {name: tensor.float() for name, tensor in run.exact.items() if name.startswith(CAPTIONER)}
    held = dict(run.model.named_parameters())
    assert {held[name].dtype for name in base} == {torch.bfloat16}
    assert {held[name].dtype for name in run.trained} == {torch.float32}
    with torch.no_grad():
        for name in run.trained:
            held[name].normal_(std=0.1)
    name = f"{CAPTIONER}layers.0.self_attn.q_proj."
    one, other = (held[f"{name}lora_{side}.default.weight"].detach() for side in "AB")
    expected = base[f"{name}base_layer.weight"] + LORA["alpha"] / LORA["rank"] * other @ one
    written = run.tensors()
    torch.testing.assert_close(written[f"{name}weight"], expected, rtol=1e-6, atol=1e-6)
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}


def test_adapters_of_a_language_model_in_bfloat16_are_trained_in_float32(tmp_path: Path):
    directory = train(captions(tmp_path / "x", objective="answer", lora=LORA, trainable=[]))
    saved = load_file(directory / checkpoint.WEIGHTS)
    adapters = {name: tensor for name, tensor in saved.items() if ".lora_" in name}
    assert adapters and {tensor.dtype for tensor in adapters.values()} == {torch.float32}
    assert any(tensor.any() for name, tensor in adapters.items() if "lora_B" in name)


@pytest.mark.slow
def test_a_run_in_bfloat16_is_resumed_exactly(tmp_path: Path):
    whole = train(captions(tmp_path / "whole", save_steps=2, trainable=[*PROJECTORS, f"{CAPTIONER}layers.1.*"]))
    config = captions(tmp_path / "x", save_steps=2, trainable=[*PROJECTORS, f"{CAPTIONER}layers.1.*"])
    ranks.run_until(1, config, 3)
    assert not (tmp_path / "x" / output.FINISHED).exists()
    assert losses(train(config) / "log.jsonl") == losses(whole / "log.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "start"), [("stage2_density", None), ("stage3", "sample:langdc")])
def test_losses_are_within_a_hundredth_of_those_of_frozen_parts_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, start: str | None
):
    """50 steps of the sample's runs, in the lines of their log, each a mean over ten steps; one step of eight samples
    may differ by more. Autocast rounds the factors of every product either way. What differs: norms' weights and
    embeddings are rounded once, and so is the sum that goes from layer to layer, after each layer.
    """
    make_dataset(tmp_path / "data", {"train": 32, "test": 0}, images=0, workers=1)
    case, found = settings.load(RunConfig, f"sample/langdc/{stage}"), []
    steps = {"data": [tmp_path / "data" / "train.jsonl"], "steps": 50, "epochs": None, "batch_size": 8}
    changes = {"precision": "bfloat16", "log_steps": 10, "features": None, "train": case.train.model_copy(update=steps)}
    changes["start"] = None if start is None else checkpoint.locate(start)
    for frozen in (torch.float32, torch.bfloat16):
        config = case.model_copy(update={**changes, "output": tmp_path / str(frozen)})
        with monkeypatch.context() as patch:
            if frozen == torch.float32:
                patch.setattr(RunModel, "_set_types", lambda self, precision: None)
            found.append(torch.tensor([line["loss"] for line in jsonl.read(train(config) / "log.jsonl")]))
    difference = (found[0] - found[1]).abs()
    assert len(difference) == 5 and difference.any(), "some frozen part was rounded"
    assert difference.max() < 1e-2, difference.tolist()
