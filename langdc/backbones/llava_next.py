"""The layout that LLaVA-NeXT writes checkpoints in, and what its tensors and settings are called in LLaVA-OneVision.

A checkpoint may leave out its language model or its encoder, which then come from the directory of that part.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

INDEX = "model.safetensors.index.json"
SHOWN = 8
SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14,
}  # fmt: skip
"""Sizes of siglip-so400m-patch14-384, which a checkpoint names but does not state."""
TOWER = r"model\.vision_tower\.vision_tower\.vision_model\."
# From names of a checkpoint, as its parts would have them within it, to those of the published OneVision directories.
RENAMED = (
    (TOWER, "vision_tower.vision_model."),
    (r"model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"model\.image_newline$", "image_newline"),
    (r"model\.(?=(layers|embed_tokens|norm)\.)", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
)
DROPPED = (
    (r".*\.inv_freq$", "rotary frequencies are computed"),
    (r".*\.position_ids$", "position numbers are computed"),
    (TOWER + "head.", "the encoder's pooling head is not used"),
    (r"(text_model\.|logit_scale$|logit_bias$)", "SigLIP's text half is not used"),
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, under its name there."""

    file: Path
    name: str


@dataclass
class Plan:
    """What becomes of every tensor: `taken` by new name, `dropped` with the reason, and those nobody knows."""

    taken: dict[str, Stored] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


# ---- settings


def read_json(folder: Path) -> dict[str, Any]:
    """The config.json of a directory; ValueError if there is none."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no config.json; give a checkpoint directory (nothing is downloaded).")
    return json.loads(file.read_text())


def check_layout(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless the settings are of a LLaVA on Qwen2 that a stock model can stand for."""
    named = [settings.get("model_type"), *(settings.get("architectures") or [])]
    if "llava_qwen" not in named and "LlavaQwenForCausalLM" not in named:
        done = " It is converted already." if "llava_onevision" in named else ""
        raise ValueError(f"{folder} is a {named[0]!r} model; a 'llava_qwen' one is converted here.{done}")
    for key, allowed in (("mm_projector_type", "mlp2x_gelu"), ("image_aspect_ratio", r"anyres_max_\d+")):
        given = settings.get(key)
        if not re.fullmatch(allowed, str(given)):
            raise ValueError(f"{folder} has {key}={given!r}; LLaVA-OneVision of transformers has {allowed} alone.")


def trained_as(settings: Mapping[str, Any]) -> str:
    """The backbone whose rule for videos the checkpoint was trained with.

    Its newlines tell: one per row, or one per video, which is also what the authors' code takes a silent file for.
    mm_spatial_pool_mode does not tell, since their evaluation of LLaVA-Video sets averages in its place.
    """
    return "llava_video" if settings.get("mm_newline_position") == "grid" else "llava_onevision"


def stock_config(
    settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, vision: Path | None
) -> LlavaOnevisionConfig:
    """The settings of the stock model; ids of the marks are those in the tokenizer."""
    known = {*Qwen2Config().to_dict(), "rope_theta", "rope_scaling"} - {"architectures", "model_type"}
    text = Qwen2Config(**{name: value for name, value in settings.items() if name in known})
    seen = vision_sizes(settings, vision)
    image, video = (int(tokenizer.convert_tokens_to_ids(mark)) for mark in ("<image>", "<video>"))  # pyright: ignore[reportArgumentType]
    if max(image, video) >= text.vocab_size:
        raise ValueError(
            f"The marks <image> and <video> would be tokens {image} and {video}, but the model has rows for "
            f"{text.vocab_size} tokens. The tokenizer is of another model; give the right one's directory: --language."
        )
    return LlavaOnevisionConfig(
        text_config=text.to_dict(),  # pyright: ignore[reportArgumentType]
        vision_config=seen,
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=pinpoints(settings.get("image_grid_pinpoints"), seen["image_size"]),
        vision_aspect_ratio=settings["image_aspect_ratio"],
        tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
        architectures=["LlavaOnevisionForConditionalGeneration"],
        dtype=settings.get("dtype") or settings.get("torch_dtype") or "bfloat16",
    )


def vision_sizes(settings: Mapping[str, Any], vision: Path | None) -> dict[str, Any]:
    """SigLIP's settings as LLaVA uses it: without head and last layer, whatever mm_vision_select_layer says."""
    name = str(settings.get("mm_vision_tower"))
    if vision is not None:
        stated = read_json(vision)
        sizes = SiglipVisionConfig(**stated.get("vision_config", stated)).to_dict()
    elif name.rstrip("/").endswith("siglip-so400m-patch14-384"):
        sizes = SO400M
    else:
        raise ValueError(f"The sizes of the encoder {name!r} are not known here; give its directory: --vision DIR.")
    kept = {key: value for key, value in sizes.items() if key not in ("architectures", "torch_dtype", "dtype")}
    return {
        **kept,
        "model_type": "siglip_vision_model",
        "num_hidden_layers": sizes["num_hidden_layers"] - 1,
        "vision_use_head": False,
    }


def pinpoints(given: Any, side: int) -> list[list[int]]:
    """Sizes that images are cut from, as a list; "(1x1),...,(6x6)" counts them in tiles of `side` pixels."""
    if isinstance(given, list) and given:
        return given
    tiles = [int(number) for number in re.findall(r"\d+", str(given))]
    if len(tiles) != 4:
        raise ValueError(f"image_grid_pinpoints={given!r}; it is a list of sizes, or '(1x1),...,(6x6)'.")
    rows, columns = range(tiles[0], tiles[2] + 1), range(tiles[1], tiles[3] + 1)
    return [[side * row, side * column] for row in rows for column in columns]


# ---- names


def tensors_in(folder: Path) -> dict[str, Path]:
    """The file of every tensor in a directory, read off the files themselves; ValueError if some are absent."""
    files = sorted(folder.glob("*.safetensors"))
    if not files and any(folder.glob("*.bin")):
        raise ValueError(
            f"{folder} holds pickled weights only, which can run code when they are loaded. Save them as safetensors "
            "where you trust them, then convert."
        )
    found: dict[str, Path] = {}
    for file in files:
        names = _names_in(file)
        twice = [name for name in names if name in found]
        if twice:
            raise ValueError(f"{twice[0]} is in {found[twice[0]].name} and in {file.name}; remove the stale file.")
        found |= dict.fromkeys(names, file)
    if (folder / INDEX).is_file():
        listed = json.loads((folder / INDEX).read_text())["weight_map"]
        lacking = sorted({listed[name] for name in listed.keys() - found.keys()})
        if lacking:
            files_named = ", ".join(lacking[:SHOWN])
            raise ValueError(f"{folder} is not complete: tensors of {files_named} are not there. Copy it again.")
    return found


def _names_in(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:  # a download that broke off, or a pointer in place of the file
        raise ValueError(f"{file} is no whole safetensors file ({error}). Copy it again.") from error


def plan_names(checkpoint: Path, language: Path | None, vision: Path | None, config: LlavaOnevisionConfig) -> Plan:
    """Where each new tensor comes from; a part that the checkpoint holds nothing of comes from its own directory."""
    found = {name: Stored(file, name) for name, file in tensors_in(checkpoint).items()}
    if vision is not None and not any(re.match(TOWER, name) for name in found):
        found |= {_within(name): Stored(file, name) for name, file in tensors_in(vision).items()}
    if language is not None and not any(name.startswith("model.layers.") for name in found):
        found = {name: Stored(file, name) for name, file in tensors_in(language).items()} | found
    assert config.text_config is not None and config.vision_config is not None  # filled in by the class
    plan = Plan()
    for name, stored in sorted(found.items()):
        reason = _reason_to_drop(name, config)
        renamed = next((re.sub("^" + old, new, name) for old, new in RENAMED if re.match(old, name)), None)
        if reason is not None:
            plan.dropped[name] = reason
        elif renamed is None:
            plan.unknown.append(name)
        else:
            plan.taken[renamed] = stored
    return plan


def _within(name: str) -> str:
    """What a tensor of a SigLIP directory is called within a checkpoint."""
    return f"model.vision_tower.vision_tower.{name}" if name.startswith("vision_model.") else name


def _reason_to_drop(name: str, config: Any) -> str | None:
    layer = re.match(TOWER + r"encoder\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) >= config.vision_config.num_hidden_layers:
        return "LLaVA leaves out the encoder's last layer"
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return "the head is tied to the embeddings"
    return next((reason for pattern, reason in DROPPED if re.match(pattern, name)), None)


def expected_shapes(config: LlavaOnevisionConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the stock model by its name in published directories; nothing is allocated."""
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    shapes = {_published(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["language_model.lm_head.weight"]
    return shapes


def _published(name: str) -> str:
    name = name.removeprefix("model.")
    name = re.sub(r"^language_model\.", "language_model.model.", name)
    name = re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)


def check_plan(plan: Plan, config: LlavaOnevisionConfig) -> None:
    """Raise ValueError unless the plan covers the stock model exactly, shapes included."""
    expected = expected_shapes(config)
    unknown = plan.unknown + [plan.taken[name].name for name in plan.taken.keys() - expected.keys()]
    misshapen = []
    for name in sorted(plan.taken.keys() & expected.keys()):
        shape = shape_of(plan.taken[name])
        if shape != expected[name]:
            misshapen.append(f"{plan.taken[name].name}: {shape}, the settings say {expected[name]}")
    troubles = {
        "missing (new name)": sorted(expected.keys() - plan.taken.keys()),
        "unknown": sorted(unknown),
        "of another shape": misshapen,
    }
    lines = [f"{len(names)} {what}: {'; '.join(names[:SHOWN])}" for what, names in troubles.items() if names]
    if lines:
        advice = "A part that the checkpoint does not hold is taken from --language DIR or --vision DIR."
        raise ValueError("The tensors do not make up the model:\n  " + "\n  ".join(lines) + f"\n{advice}")


def shape_of(stored: Stored) -> tuple[int, ...]:
    """The shape of a tensor, read off its file's head."""
    with safe_open(stored.file, "pt") as opened:
        return tuple(opened.get_slice(stored.name).get_shape())
