"""A phase is finished only when a fresh process has loaded what was saved, and found what was trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from langdc.training import runs, saving, stages
from langdc.training.saving import Proof, drawn_parameters
from torch import nn

from langdc import checkpoint, verify
from langdc.config import StageConfig, check
from langdc.sample.dataset import make_dataset
from scripts import run_stages
from tests import tiny
from tests.training import ranks

ROOT = Path(__file__).parents[2]
POST = "compressor.post_projector.weight"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_dataset(folder, {"train": 4, "test": 0}, images=8, workers=1)
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> StageConfig:
    """A captioner trained through adapters, which are merged, then adapters on the language model."""
    common = {"steps": 2, "batch_size": 2, "learning_rate": 1e-2}
    lora = {"rank": 2, "alpha": 4, "dropout": 0.1}
    caption = {
        **common,
        "name": "base",
        "objective": "caption",
        "data": [str(data / "images.jsonl")],
        "trainable": ["compressor.projectors.*"],
        "captioner_lora": lora,
    }
    answer = {
        **common,
        "name": "instruct",
        "objective": "answer",
        "data": [str(data / "train.jsonl")],
        "trainable": ["compressor.post_projector.*"],
        "lora": lora,
    }
    model = tiny.config("langdc", segment_marker=True).model_dump(mode="json")
    tree = {"stage": "stage2", "model": model, "output": str(tmp_path / "x"), "phases": [caption, answer]}
    return check(StageConfig, {**tree, "log_steps": 1, "save_steps": 1}, "test")


def test_every_phase_is_loaded_by_a_fresh_process(config: StageConfig) -> None:
    directory = stages.run_stage(config)
    finished = json.loads((directory / runs.FINISHED).read_text())
    for figures in finished["phases"].values():
        # all parameters of the model with its adapters, and with those of the captioner merged
        assert figures["verified"]["tensors"] > 150
        assert figures["verified"]["logits"] < 1e-4
    assert "verified" not in checkpoint.read_card(directory)["training"]


def spoiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one trained tensor be saved with other values, its hash with it."""
    save = checkpoint.save

    def wrong(model: nn.Module, directory: Path, *, tensors: dict, **more) -> None:
        save(model, directory, tensors={**tensors, POST: tensors[POST] + 1e-3}, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(checkpoint, "save", wrong)


def test_a_save_that_differs_is_refused_and_the_run_can_go_on(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.model_copy(update={"phases": config.phases[1:]})
    with monkeypatch.context() as broken:
        spoiled(broken)
        with pytest.raises(ValueError, match=f"{POST} has other values(.|\n)*does not count as finished"):
            stages.run_stage(config)
    directory = config.output
    assert not runs.is_finished(directory)
    assert list(directory.glob(f"resume/instruct/checkpoint-*/{runs.COMPLETE}"))
    assert stages.run_stage(config) == directory and runs.is_finished(directory)


def test_a_save_that_lacks_what_was_trained_is_refused(config: StageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoint.save

    def empty(model: nn.Module, directory: Path, *, tensors: dict, **more) -> None:
        kept = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
        save(model, directory, tensors=kept, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(checkpoint, "save", empty)
    with pytest.raises(ValueError, match=r"lora_(.|\n)* has other values(.|\n)* and \d+ more"):
        stages.run_stage(config.model_copy(update={"phases": config.phases[1:]}))
    assert not runs.is_finished(config.output)


def test_it_can_be_left_out(config: StageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(monkeypatch)
    monkeypatch.setattr(saving, "prepare", lambda: pytest.fail("a process was started"))
    config = config.model_copy(update={"phases": config.phases[1:]})
    path = tmp_path / "stage2.yaml"
    stages.settings.save(config, path)
    code, line = stages.main("stage2", ["--config", str(path), "--no-verify-save"], ROOT)
    assert code == 0 and str(config.output) in line
    assert json.loads((config.output / runs.FINISHED).read_text())["phases"]["instruct"]["verified"] is None


def test_the_chain_of_stages_hands_it_on(config: StageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages.settings.save(config, tmp_path / "stage2.yaml")
    commands: list[list[str]] = []

    def ran(command: list[str], **_: object):
        commands.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_stages.subprocess, "run", ran)
    assert run_stages.main([str(tmp_path), "--no-verify-save"]) == 130
    assert run_stages.main([str(tmp_path)]) == 130
    assert ["--no-verify-save" in command for command in commands] == [True, False]


def test_what_no_stage_has_trained_yet_is_saved_too(config: StageConfig, data: Path, tmp_path: Path) -> None:
    """Else every load would draw the post-projector anew: of parts that are published, none is random."""
    parts = tiny.model("langdc", segment_marker=True)
    for name, part in (
        ("language", parts.backbone.language_model),
        ("captioner", parts.captioner.captioner.language_model),
    ):
        part.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    settings = config.model.model_dump(mode="json")
    settings["backbone"]["language_model"] = str(tmp_path / "language")
    settings["compressor"]["captioner"] = str(tmp_path / "captioner")
    for stream in ("image_encoder", "video_encoder"):
        settings["backbone"][stream]["source"] = f"sample:{'clip' if stream == 'image_encoder' else 'internvideo2'}"
    changed = config.model_copy(
        update={"model": check(type(config.model), settings, "test"), "phases": config.phases[:1]}
    )
    directory = stages.run_stage(changed)
    saved = checkpoint.saved_names(directory)
    assert {POST, "compressor.segment_marker"} <= set(saved)
    assert not any(name.startswith("backbone.") for name in saved)
    verified = json.loads((directory / runs.FINISHED).read_text())["phases"]["base"]["verified"]
    assert verified["logits"] < 1e-4
    assert set(drawn_parameters(checkpoint.load(directory))) <= set(saved)
    inside = "compressor.captioner.language_model.model.norm.weight"
    assert inside not in saved and inside in drawn_parameters(parts)  # that captioner no directory holds


def test_logits_are_left_out_where_they_cannot_be_compared() -> None:
    model = tiny.model("pool")
    names = [name for name, _ in model.named_parameters()]
    assert Proof(model, True)._incomparable(names) == ""
    others = [name for name in names if not name.startswith("backbone.projectors.")]
    assert "projectors" in Proof(model, True)._incomparable(others)
    assert Proof(tiny.model("langdc"), True)._incomparable(others) == ""  # nobody reads them
    layer = model.backbone.language_model.get_submodule("model.layers.0.mlp.up_proj")
    layer.weight = nn.Parameter(torch.zeros(4, 1, dtype=torch.uint8), requires_grad=False)
    assert "4 bits" in Proof(model, True)._incomparable(names)
    found = verify.fingerprint(model, logits=False)
    assert found.packed == ["backbone.language_model.model.layers.0.mlp.up_proj.weight"]
    whole = verify.fingerprint(tiny.model("pool"), logits=False)
    assert verify.differences(found, whole) == []


def verified(config: StageConfig) -> dict[str, dict]:
    figures = json.loads((config.output / runs.FINISHED).read_text())
    return {name: phase["verified"] for name, phase in figures["phases"].items()}


def recipes(data: Path, folder: Path, number: int, names: Sequence[str], **changes: object) -> list[StageConfig]:
    """Two steps of every phase of these recipes, for two processes under ZeRO."""
    found = [ranks.recipe(name, data, folder / name, longest=24) for name in names]
    short = [ranks.changed(config, config.output, number, batch_size=2, steps=2) for config in found]
    return [config.model_copy(update={"verify_save": True, **changes}) for config in short]


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_what_two_processes_trained_is_compared_as_a_whole(varied: Path, tmp_path: Path, number: int) -> None:
    """ZeRO-3 leaves each process half of every parameter; also captioners whose adapters are merged by one process."""
    configs = recipes(varied, tmp_path, number, ranks.STAGES)
    ranks.run(2, *configs)
    for config in configs:
        expected = len(verify.fingerprint(checkpoint.load(config.output), logits=False).tensors)
        for phase, seen in verified(config).items():
            assert seen["logits"] < 1e-4 and seen["tensors"] <= expected, phase
        assert seen["tensors"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_what_was_trained_in_a_shorter_type_is_compared_in_it(varied: Path, tmp_path: Path, number: int) -> None:
    (config,) = recipes(varied, tmp_path, number, ["stage3"], precision="bfloat16")
    ranks.run(2, config)
    assert 0 < verified(config)["instruct"]["logits"] < verify.ROUNDED


def spoiled_rank(*arguments: Any) -> None:
    """A rank whose first process writes one trained tensor wrong."""
    with pytest.MonkeyPatch.context() as patch:
        spoiled(patch)
        RANK(*arguments)


RANK = ranks._rank


@pytest.mark.slow
def test_a_save_that_differs_ends_all_processes(varied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_rank", spoiled_rank)
    (config,) = recipes(varied, tmp_path, 3, ["stage3"])
    assert ranks.finish(ranks.start(2, config)) == [1, 1]
    assert not runs.is_finished(config.output)
