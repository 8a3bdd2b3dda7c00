"""The full-size recipes: every stage is there and loads, says what it must, and trains the parts that the paper names.

Models are built on the meta device, from the published sizes alone.
"""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from langdc.adapters import adapt, attach_lora
from langdc.config import ModelConfig, PhaseConfig, Settings, StageConfig, check, load
from langdc.model import VideoModel
from langdc.prepare.mix import MIXES
from langdc.train.trainable import unfreeze
from scripts.run_stages import ordered, read_steps
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


def stage(file: str) -> StageConfig:
    return load(StageConfig, CONFIGS / f"{file}.yaml")


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


def trained(file: str, phase: PhaseConfig) -> int:
    """How many parameters a phase trains, adapters attached as its stage attaches them."""
    model = built(file, fresh=phase.lora is not None or phase.captioner_lora is not None)
    patterns = list(phase.trainable)
    with torch.device("meta"):
        if phase.lora is not None:
            attach_lora(model.backbone, phase.lora)
        if phase.captioner_lora is not None:
            adapt(model.captioner.captioner.language_model.base_model, phase.captioner_lora)
            patterns.append("compressor.captioner.*.lora_*")
    names = unfreeze(model, patterns, adapters=phase.lora is not None)
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
    (phase,) = config.phases
    (data,) = phase.data
    assert data.stem in MIXES
    if "stage2c" not in file:
        assert f"langdc_mix.py {data.stem} " in said
    assert config.deepspeed is not None and (CONFIGS.parent / config.deepspeed).is_file()


@pytest.mark.parametrize("folder", CHAINS)
def test_the_stages_follow_one_another(folder: str) -> None:
    steps = ordered(read_steps(CONFIGS / folder))
    assert [step.name for step in steps] == CHAINS[folder]
    outputs = [None, *(step.config.output for step in steps)]
    assert all(step.config.start in outputs[: number + 1] for number, step in enumerate(steps))
    assert steps[0].config.start is None and steps[-1].config.start == steps[-2].config.start


@pytest.mark.parametrize("folder", CHAINS)
def test_variants_fit_where_the_stage_stands_that_they_vary(folder: str) -> None:
    steps = {step.name: step for step in read_steps(CONFIGS / folder / "variants")}
    outputs = {step.config.output for step in [*read_steps(CONFIGS / folder), *steps.values()]}
    assert sorted(steps) == sorted(VARIANTS[folder])
    assert {step.config.start for step in steps.values()} <= outputs
    for name, step in steps.items():
        four_bits = step.config.model.backbone.settings.get("quantize") == "nf4"
        assert four_bits == name.endswith("qlora") == (step.config.deepspeed is None)
        (phase,), (usual,) = step.config.phases, stage(f"{folder}/{name.rpartition('_')[0]}").phases
        assert phase.data == usual.data and phase.objective == usual.objective


@pytest.mark.parametrize("file", TRAINED)
def test_a_recipe_trains_what_the_paper_says(file: str) -> None:
    (phase,) = stage(file).phases
    assert trained(file, phase) == TRAINED[file]


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
