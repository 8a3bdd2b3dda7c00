"""The full-size recipes: every stage is there and loads, says what it must, and trains the parts that the paper names.

Models are built on the meta device, from the published sizes alone.
"""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from langdc.adapters import adapt
from langdc.config import ModelConfig, RunConfig, Settings, check, load
from langdc.model import VideoModel
from langdc.prepare.mix import MIXES
from langdc.train import chain
from langdc.train.trainable import unfreeze
from tests import tiny

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LANGDC = [
    "stage1_llm_image", "stage1_llm_video", "stage1_captioner_image", "stage1_captioner_video", "stage2a", "stage2b",
    "stage2c", "stage3_choice", "stage3_open",
]  # fmt: skip
CHAINS = {
    "langdc_3b": LANGDC,
    "langdc_1.5b": LANGDC,
    "videogpt_plus": ["stage1_image", "stage1_video", "stage3_choice", "stage3_open"],
}
QLORA = ["stage3_choice_qlora", "stage3_open_qlora"]
VARIANTS = {"langdc_3b": ["stage2a_lora", "stage2b_lora", *QLORA], "videogpt_plus": QLORA}
VARIANTS["langdc_1.5b"] = VARIANTS["langdc_3b"]
FILES = [f"{folder}/{name}" for folder, names in CHAINS.items() for name in names]
FILES += [f"{folder}/variants/{name}" for folder, names in VARIANTS.items() for name in names]

CAPTIONER = 494_032_768  # Qwen2.5-0.5B
# What a linear layer of each network takes and gives, by the published widths; grouped heads give fewer keys.
LAYERS = {
    "Qwen2.5-3B": (36, [(2048, 2048), (2048, 256), (2048, 256), (2048, 2048), *[(2048, 11008)] * 2, (11008, 2048)]),
    "Qwen2.5-1.5B": (28, [(1536, 1536), (1536, 256), (1536, 256), (1536, 1536), *[(1536, 8960)] * 2, (8960, 1536)]),
    "Qwen2.5-0.5B": (24, [(896, 896), (896, 128), (896, 128), (896, 896), *[(896, 4864)] * 2, (4864, 896)]),
    "Phi-3-mini": (32, [(3072, 3 * 3072), (3072, 3072), (3072, 2 * 8192), (8192, 3072)]),
}


def mlp(width: int, out: int) -> int:
    """Weights and biases of a projector of two linear layers."""
    return width * out + out + out * out + out


def lora(network: str, rank: int = 128) -> int:
    layers, shapes = LAYERS[network]
    return layers * rank * sum(width + out for width, out in shapes)


TRAINED = {
    "langdc_3b/stage1_llm_image": mlp(1024, 2048),
    "langdc_3b/stage1_llm_video": mlp(1408, 2048),
    "langdc_3b/stage1_captioner_image": mlp(1024, 896),
    "langdc_3b/stage1_captioner_video": mlp(1408, 896),
    "langdc_3b/stage2a": CAPTIONER + mlp(1024, 896) + mlp(1408, 896),
    "langdc_3b/stage2b": CAPTIONER + mlp(1024, 896) + mlp(1408, 896),
    "langdc_3b/stage2c": 896 * 2048 + 2048,
    "langdc_3b/stage3_choice": 239_468_544 + 896 * 2048 + 2048,
    "langdc_3b/stage3_open": lora("Qwen2.5-3B") + 896 * 2048 + 2048,
    "langdc_3b/variants/stage2a_lora": lora("Qwen2.5-0.5B") + mlp(1024, 896) + mlp(1408, 896),
    "langdc_3b/variants/stage2b_lora": lora("Qwen2.5-0.5B") + mlp(1024, 896) + mlp(1408, 896),
    "langdc_1.5b/stage1_llm_video": mlp(1408, 1536),
    "langdc_1.5b/stage2c": 896 * 1536 + 1536,
    "langdc_1.5b/stage3_choice": lora("Qwen2.5-1.5B") + 896 * 1536 + 1536,
    "videogpt_plus/stage1_image": mlp(1024, 3072),
    "videogpt_plus/stage3_open": lora("Phi-3-mini") + mlp(1024, 3072) + mlp(1408, 3072),
}
LANGUAGE_MODELS = {"langdc_3b": 3_085_938_688, "langdc_1.5b": 1_543_714_304, "videogpt_plus": 3_821_079_552}


class Sizes(Settings):
    """What a file of sizes holds."""

    model: ModelConfig


def stage(file: str) -> RunConfig:
    return load(RunConfig, CONFIGS / f"{file}.yaml")


def sized(file: str) -> ModelConfig:
    """A recipe's model with the published sizes where it names directories of weights."""
    tree = stage(file).model.model_dump(mode="json")
    sizes = load(Sizes, CONFIGS / file.partition("/")[0] / "model.yaml").model
    backbone, compressor = tree["backbone"], tree["compressor"]
    assert backbone["language_model"].startswith("weights/")
    backbone.pop("quantize", None)
    backbone["language_model"] = sizes.backbone.settings["language_model"]
    backbone["tokenizer"] = tiny.tokenizer_folder()
    for name in ("image_encoder", "video_encoder"):
        assert backbone[name]["source"].startswith("weights/")
        backbone[name]["source"] = sizes.backbone.settings[name]["source"]
    if compressor["name"] == "langdc":
        assert compressor["captioner"] == "weights/Qwen2.5-0.5B"
        compressor["captioner"] = sizes.compressor.settings["captioner"]
        compressor["captioner_tokenizer"] = tiny.tokenizer_folder()
    return check(ModelConfig, tree, file)


@cache
def _built(settings: str) -> VideoModel:
    with torch.device("meta"):
        return VideoModel(ModelConfig.model_validate_json(settings))


def built(file: str, fresh: bool = False) -> VideoModel:
    """A recipe's model; models that adapters go into are not shared."""
    settings = sized(file).model_dump_json()
    return _built.__wrapped__(settings) if fresh else _built(settings)


def trained(file: str) -> int:
    """How many parameters a run trains, adapters attached as it attaches them."""
    train = stage(file).train
    model = built(file, fresh=train.lora is not None or train.compressor_lora is not None)
    patterns = list(train.trainable)
    with torch.device("meta"):
        if train.lora is not None:
            adapt(model.backbone.text_model, train.lora)
        if train.compressor_lora is not None:
            adapt(model.compressor.captioner.language_model.base_model, train.compressor_lora)
            patterns.append("compressor.captioner.*.lora_*")
    names = unfreeze(model, patterns, adapters=train.lora is not None)
    return sum(model.get_parameter(name).numel() for name in names)


def head(file: str) -> str:
    lines = (CONFIGS / f"{file}.yaml").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def test_no_stage_file_is_unknown_to_these_tests() -> None:
    found = {
        str(path.relative_to(CONFIGS).with_suffix(""))
        for folder in CHAINS
        for path in CONFIGS.glob(f"{folder}/**/stage*")
    }
    assert found == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_loads_and_its_head_says_what_it_must(file: str) -> None:
    config, said = stage(file), head(file)
    command = re.search(r"train/(stage\d)\.py --config configs/(\S+)\.yaml", said)
    assert command is not None and command.groups() == (config.stage, file)
    assert config.output == Path("runs", file.partition("/")[0], Path(file).name)
    if "variants/" in file:
        return
    for wanted in ("# Data: ", "# GPUs: ", "Published"):
        assert wanted in said, wanted
    (data,) = config.train.data
    assert data.stem in MIXES
    if "stage2c" not in file:
        assert f"langdc_mix.py {data.stem} " in said or f"langdc data mix {data.stem} " in said
    assert config.deepspeed is not None and config.deepspeed.is_file()


@pytest.mark.parametrize("folder", CHAINS)
def test_the_runs_follow_one_another(folder: str) -> None:
    links = chain.read([CONFIGS / folder])
    assert [Path(link.name).stem for link in links] == CHAINS[folder]
    outputs = [link.config.output for link in links]
    assert [link.config.start for link in links] == [None, *outputs[:-2], outputs[-3]], "both end from the same"


@pytest.mark.parametrize("folder", CHAINS)
def test_variants_fit_where_the_run_stands_that_they_vary(folder: str) -> None:
    variants = {name: stage(f"{folder}/variants/{name}") for name in VARIANTS[folder]}
    outputs = {link.config.output for link in chain.read([CONFIGS / folder])}
    assert {config.start for config in variants.values()} <= outputs | {each.output for each in variants.values()}
    for name, config in variants.items():
        four_bits = config.model.backbone.settings.get("quantize") == "nf4"
        assert four_bits == name.endswith("qlora") == (config.deepspeed is None)
        usual = stage(f"{folder}/{name.rpartition('_')[0]}")
        assert config.train.data == usual.train.data and config.objective == usual.objective


@pytest.mark.parametrize("file", TRAINED)
def test_a_recipe_trains_what_the_paper_says(file: str) -> None:
    assert trained(file) == TRAINED[file]


@pytest.mark.parametrize("folder", CHAINS)
def test_the_models_have_the_published_sizes(folder: str) -> None:
    model = built(f"{folder}/{CHAINS[folder][0]}")
    assert sum(parameter.numel() for parameter in model.backbone.language_model.parameters()) == LANGUAGE_MODELS[folder]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_stage_1_shows_one_stream_and_stage_3_both() -> None:
    pools = {name: stage(f"langdc_3b/{name}").model.compressor.settings for name in LANGDC}
    assert [pools[name].get("sides") for name in LANGDC[:2]] == [[12, 0], [0, 8]]
    assert [pools[name]["pool"] for name in LANGDC[2:]] == [[12, 0], [0, 8], *[[12, 8]] * 5]
    assert [pools[name]["base"] for name in LANGDC[2:7]] == [None] * 5
    assert pools["stage3_choice"]["base"] == pools["stage3_open"]["base"] == {"name": "pool", "sides": [6, 4]}


@pytest.mark.parametrize("file", sorted((CONFIGS / "deepspeed").glob("*.json")), ids=lambda file: file.stem)
def test_zero_settings_have_numbers_where_auto_would_ask_a_model_of_one_width(file: Path) -> None:
    settings = json.loads(file.read_text())
    zero = settings["zero_optimization"]
    assert "auto" not in zero.values()
    assert zero["stage"] == int(file.stem[4])
    if "offload" in file.stem:
        assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"
        assert settings["zero_force_ds_cpu_optimizer"] is False  # the Trainer brings torch's AdamW
