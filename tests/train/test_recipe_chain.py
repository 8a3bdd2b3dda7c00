"""The chain of the full-size recipes at a small size: their own runs and compressors, on videos and images of ours.

What is taken from the recipes is what could go wrong between them: which model each stage is, and what it starts from.
"""

import copy
from pathlib import Path

import pytest
from safetensors.torch import load_file

from langdc import checkpoint
from langdc.config import RunConfig, check, load
from langdc.data.records import QuestionRecord, read_records, write_records
from langdc.sample.dataset import make_dataset
from langdc.train import chain
from langdc.train.run import train
from tests import tiny

RECIPES = Path(__file__).resolve().parents[2] / "configs"
SIDES = {12: 3, 8: 2, 6: 2, 4: 1, 0: 0}
SMALL = {"epochs": None, "steps": 1, "batch_size": 2, "gradient_accumulation": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Record files as the recipes name them, of images with a request or of videos."""
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_dataset(folder, {"train": 2, "test": 0}, images=2, workers=1)
    asked = [QuestionRecord(kind="cc595k", question="describe the image", answer="red square")]
    images = [record.model_copy(update={"questions": asked}) for record in read_records(folder / "images.jsonl")]
    write_records(folder / "asked.jsonl", images)
    files = dict.fromkeys(("stage1", "stage2a", "pretraining"), folder / "asked.jsonl")
    files |= dict.fromkeys(("stage2b", "choice", "open"), folder / "train.jsonl")
    return {name: str(file) for name, file in files.items()}


def shrunk(config: RunConfig, folder: Path, data: dict[str, str]) -> RunConfig:
    """A recipe at a small size: one step, small parts, the same compressor with fewer tokens."""
    tree = config.model_dump(mode="json", exclude={"deepspeed", "precision", "features", "workers"})
    asked = tree["model"]["compressor"]
    small = {"sides": [SIDES[side] for side in asked["sides"]]} if asked["name"] == "pool" else tiny.langdc_settings()
    if asked["name"] == "langdc":
        small["pool"] = [SIDES[side] for side in asked["pool"]]
        small["post_projector"] = asked["post_projector"]
        small["base"] = asked["base"] and {**asked["base"], "sides": [SIDES[side] for side in asked["base"]["sides"]]}
    tree["model"] = {
        "backbone": {"name": "videogpt_plus", **tiny.backbone_settings()},
        "compressor": {"name": asked["name"], **small},
    }
    tree |= {key: str(folder / Path(tree[key]).name) if tree[key] else None for key in ("output", "start")}
    tree["train"] |= copy.deepcopy(SMALL) | {"data": [data[Path(tree["train"]["data"][0]).stem]]}
    for key in ("lora", "compressor_lora"):
        tree["train"][key] = tree["train"][key] and {"rank": 2, "alpha": 4, "dropout": 0.0}
    return check(RunConfig, tree, "a small recipe")


@pytest.mark.slow
@pytest.mark.parametrize("recipes", ["langdc_3b", "videogpt_plus"])
def test_each_run_starts_from_the_one_before_and_keeps_what_it_learned(recipes: str, data, tmp_path: Path) -> None:
    learned: dict[str, set[str]] = {}
    for link in chain.read([RECIPES / recipes]):
        config = shrunk(link.config, tmp_path, data)
        directory = train(config)
        learned[directory.name] = set(load_file(directory / checkpoint.WEIGHTS))
        if config.start is not None:
            assert learned[config.start.name] <= {name.replace(".base_layer", "") for name in learned[directory.name]}
    for name in ("stage3_choice", "stage3_open"):
        model = checkpoint.load(tmp_path / name)
        projectors = {key for key, _ in model.named_parameters() if key.startswith("backbone.projectors.")}
        assert projectors <= learned[name] and not model.untrained


@pytest.mark.slow
def test_adapters_in_the_captioner_stand_where_the_whole_captioner_does(data, tmp_path: Path) -> None:
    first = load(RunConfig, RECIPES / "langdc_3b/stage1_captioner_image.yaml", ["start=null"])
    train(shrunk(first, tmp_path, data))
    for name, start in (("stage2a_lora", "stage1_captioner_image"), ("stage2b_lora", "stage2a_lora")):
        config = load(RunConfig, RECIPES / f"langdc_3b/variants/{name}.yaml", [f"start=runs/{start}"])
        train(shrunk(config, tmp_path, data))
    config = load(RunConfig, RECIPES / "langdc_3b/stage2c.yaml", ["start=runs/stage2b_lora"])
    saved = load_file(train(shrunk(config, tmp_path, data)) / checkpoint.WEIGHTS)
    assert not any("lora" in name for name in saved)
    assert "compressor.captioner.language_model.model.layers.0.mlp.up_proj.weight" in saved
