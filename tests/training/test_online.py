"""Sets too large to keep: each step decodes and encodes its own videos, and learns what it would from kept features."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from langdc.training.answers import AnswerObjective
from langdc.training.objectives import Objective
from langdc.training.samples import grid_values, settle
from langdc.training.stages import OBJECTIVES

from langdc.config import StageConfig, check
from langdc.features import FeatureStore
from tests import tiny
from tests.training.ranks import STAGES, assert_close, changed, losses, recipe, run


def made(folder: Path, objective: str, memory: float, dtype: str = "float32", **settings: object) -> Objective:
    """An objective over images, videos and text, the same weights every time."""
    files = [folder / f"{name}.jsonl" for name in ("images", "train", "text")]
    model = tiny.model("langdc", base={"name": "pool", "sides": [3, 2]}, max_soft_tokens=8)
    phase = {"name": "one", "objective": objective, "data": files, "trainable": ["*"], "steps": 1, **settings}
    tree = {"stage": "stage2", "model": model.config, "phases": [phase], "features_dtype": dtype}
    config = check(StageConfig, tree | {"feature_memory": memory}, "test")
    return OBJECTIVES[config.phases[0].objective](
        model, config.phases[0], config, FeatureStore.of(model.backbone, None, config.features_dtype)
    )


def loss(objective: Objective) -> torch.Tensor:
    batch = objective.collate([objective[number] for number in range(len(objective))])
    settle(batch)
    objective.module.train()
    found = objective.module(**batch)["loss"]
    found.backward()
    return found.detach()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8"])
@pytest.mark.parametrize(("objective", "settings"), [("caption", {}), ("answer", {"captions": "captioner"})])
def test_a_step_learns_what_it_would_from_kept_features(varied: Path, objective: str, settings: dict, dtype: str):
    kept, online = (made(varied, objective, memory, dtype, **settings) for memory in (1.0, 0.0))
    assert (kept.online, online.online) == (False, True)
    torch.testing.assert_close(loss(online), loss(kept), rtol=1e-5, atol=1e-6)
    assert kept.features.made == 16 and online.features.made == 0
    assert online.module.flops > kept.module.flops  # encoders, and for replies the captioner, ran in the step


def test_captions_of_the_file_are_read_in_the_step(varied: Path):
    kept, online = (made(varied, "answer", memory, captions="file") for memory in (1.0, 0.0))
    torch.testing.assert_close(loss(online), loss(kept), rtol=1e-5, atol=1e-6)
    assert isinstance(online, AnswerObjective) and online.states is None
    assert not online.model.captioner.captioner.training and online.model.backbone.language_model.training


def test_the_size_is_known_before_anything_is_encoded(varied: Path):
    kept = made(varied, "caption", 1.0)
    values = [grid for clip in kept.clips for grid in kept.features.kept(clip).values()]
    assert grid_values(kept.clips, kept.model) == sum(map(torch.Tensor.numel, values))
    size = 4 * grid_values(kept.clips, kept.model) / 1e9
    assert not made(varied, "caption", size).online and made(varied, "caption", size * 0.999).online


def test_a_file_that_cannot_be_read_is_named_when_its_step_comes(varied: Path, tmp_path: Path):
    shutil.copytree(varied, tmp_path, dirs_exist_ok=True)
    found = made(tmp_path, "caption", 0.0)
    broken = next(sample for sample in found.samples if sample.record.video is not None)
    assert broken.clip is not None
    broken.clip.path.write_bytes(b"no video")
    with pytest.raises(ValueError, match=broken.clip.path.name):
        settle(found.collate([broken]))


def online(config: StageConfig, output: Path, zero: int | None = None, **phases: object) -> StageConfig:
    return changed(config, output, zero, **phases).model_copy(update={"feature_memory": 0.0})


def from_kept(names: Sequence[str], varied: Path, folder: Path, steps: int) -> dict[str, StageConfig]:
    """So many steps by one process, with kept features and captions of its own.

    Captions are short: under ZeRO-3 all ranks send each other all weights for every token that one of them writes.
    """
    found = {name: recipe(name, varied, folder / name, longest=12) for name in names}
    found = {name: changed(each, folder / name, steps=steps, captions="captioner") for name, each in found.items()}
    run(1, *found.values())
    return found


@pytest.fixture(scope="module")
def kept(varied: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageConfig]:
    return from_kept(("stage1_backbone", "stage3"), varied, tmp_path_factory.mktemp("kept"), 2)


@pytest.fixture(scope="module")
def longer(varied: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageConfig]:
    return from_kept(STAGES, varied, tmp_path_factory.mktemp("longer"), 8)


def test_two_processes_that_share_all_parameters_learn_the_same(kept: dict[str, StageConfig], tmp_path: Path):
    """One has a batch of images where the other has videos, or text alone; each writes captions of its own length."""
    found = {name: online(each, tmp_path / name, 3, batch_size=2) for name, each in kept.items()}
    run(2, *found.values())
    for name, each in found.items():
        assert_close(each, kept[name], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "zero"), [*((stage, 3) for stage in STAGES), ("stage3", 2), ("stage3", None)])
def test_any_stage_learns_the_same(longer: dict[str, StageConfig], tmp_path: Path, stage: str, zero: int | None):
    found = online(longer[stage], tmp_path / "two", zero, batch_size=2)
    run(2, found)
    assert_close(found, longer[stage], 1e-4)


@pytest.mark.slow
def test_processes_that_decode_ahead_change_nothing(kept: dict[str, StageConfig], tmp_path: Path):
    found = online(kept["stage3"], tmp_path / "one")
    others = found.model_copy(update={"workers": 2, "output": tmp_path / "workers"})
    run(1, found, others)
    assert losses(found) == losses(others)
    assert_close(found, kept["stage3"], 1e-5)
