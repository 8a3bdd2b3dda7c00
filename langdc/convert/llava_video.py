"""A checkpoint in the layout of LLaVA-NeXT (LlavaQwenForCausalLM) as a LLaVA-OneVision directory of transformers.

The backbones llava_video and llava_onevision load the result. A checkpoint may leave out its language model or its
encoder, which then come from the directory of that part. Weights are read and written file by file; conversion.json
lists every tensor.
"""

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AddedToken,
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

from langdc.convert.commands import open_output, write_report
from langdc.convert.files import chat_template, config_within
from langdc.convert.names import NameReport, shapes_of
from langdc.log import screen, track
from langdc.modelfiles import check_complete, check_depth, check_files, read_settings, read_tensors, weight_files

_ENDS = "generation_config.json"
_INDEX = "model.safetensors.index.json"
_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
"""Sizes of siglip-so400m-patch14-384, which a checkpoint names but does not state."""
_TOWER = r"model\.vision_tower\.vision_tower\.vision_model\."
# From names of a checkpoint, as its parts would have them within it, to those of the published OneVision directories.
_RENAMED = (
    (_TOWER, "vision_tower.vision_model."),
    (r"model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"model\.image_newline$", "image_newline"),
    (r"model\.(?=(layers|embed_tokens|norm)\.)", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
)
_DROPPED = (
    (r".*\.inv_freq$", "rotary frequencies are computed"),
    (r".*\.position_ids$", "position numbers are computed"),
    (_TOWER + "head.", "the encoder's pooling head is not used"),
    (r"(text_model\.|logit_scale$|logit_bias$)", "SigLIP's text half is not used"),
)


class _Stored(NamedTuple):
    """A tensor, mapped into memory and read where it is used, and the file and name that it comes from."""

    tensor: Tensor
    origin: str


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the arguments say; 0 when the directory is written."""
    parser = argparse.ArgumentParser(prog="langdc convert llava_video", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="directory of the published checkpoint")
    parser.add_argument("out", type=Path, help="directory to make")
    parser.add_argument("--language", type=Path, help="Qwen2 directory, for a tokenizer and weights it lacks")
    parser.add_argument("--vision", type=Path, help="SigLIP directory, for sizes and weights it lacks")
    parser.add_argument("--shard-gb", type=float, default=2.0, help="size of a weights file, and of the memory used")
    options = parser.parse_args(argv)
    report = _convert(options.checkpoint, options.out, options.language, options.vision, options.shard_gb)
    console = screen()
    first, *others = report.lines()
    console.print(f"{options.out}: {first}", *others, sep="\n")
    trained_as = _trained_as(_read_config(options.checkpoint))
    console.print(f"Its own rule for videos is that of the backbone {trained_as}.")
    return 0


def _convert(checkpoint: Path, out: Path, language: Path | None, vision: Path | None, shard_gb: float) -> NameReport:
    """Write `out`, whole or not at all; ValueError names every tensor that is missing, unknown or misshapen."""
    if shard_gb <= 0:
        raise ValueError(f"--shard-gb {shard_gb}; give more than 0, such as 2.")
    with open_output(out) as beside:
        settings = _read_config(checkpoint)
        folders = [checkpoint] if language is None else [checkpoint, language]
        tokenizer = _load_tokenizer(folders)
        config = _stock_config(settings, tokenizer, vision)
        found = _published_tensors(checkpoint, language, vision)
        report = _sort_names(found, config)
        taken = {new: found[old] for new, old in report.taken.items()}
        _write_weights(taken, beside, getattr(torch, str(config.dtype).removeprefix("torch.")), int(shard_gb * 1e9))
        config.save_pretrained(beside)
        _write_processor(config, tokenizer, beside)
        # where replies end
        if file := next((one / _ENDS for one in folders if (one / _ENDS).is_file()), None):
            shutil.copy(file, beside)
        write_report(beside, NameReport({new: stored.origin for new, stored in taken.items()}, report.dropped))
    return report


def _write_weights(tensors: Mapping[str, _Stored], folder: Path, dtype: torch.dtype, limit: int) -> None:
    """Write files of at most `limit` bytes (or of one tensor) and their index."""
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda stored: stored.tensor.numel() * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    for file, names in track(split.filename_to_tensors.items(), len(split.filename_to_tensors), "Writing files"):
        save_file({name: tensors[name].tensor.to(dtype) for name in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _load_tokenizer(folders: Sequence[Path]) -> PreTrainedTokenizerBase:
    """The tokenizer of the first directory that holds one, with the two marks added; ValueError if none does."""
    folder = next((one for one in folders if (one / "tokenizer_config.json").is_file()), None)
    if folder is None:
        raise ValueError("The checkpoint holds no tokenizer; give the directory of its Qwen2: --language DIR.")
    # in place of its own config.json, whose model type transformers does not know
    tokenizer = AutoTokenizer.from_pretrained(folder, config=Qwen2Config(), trust_remote_code=False)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in ("<image>", "<video>")])
    return tokenizer


def _write_processor(config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write tokenizer, chat template and processors; pixels go from -1 to 1, as SigLIP takes them."""
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    how: dict[str, Any] = {"size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tokenizer.chat_template = chat_template("llava_video")
    LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(**how, image_grid_pinpoints=config.image_grid_pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(**how),
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        vision_aspect_ratio=config.vision_aspect_ratio,
    ).save_pretrained(folder)


# ---- settings


def _read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint; ValueError unless it is a LLaVA on Qwen2 that a stock model can stand for."""
    settings = read_settings(folder / "config.json", "to know the model's sizes")
    named = [settings.get("model_type"), *(settings.get("architectures") or [])]
    if "llava_qwen" not in named and "LlavaQwenForCausalLM" not in named:
        done = " It is converted already." if "llava_onevision" in named else ""
        raise ValueError(f"{folder} is a {named[0]!r} model; a 'llava_qwen' one is converted here.{done}")
    for key, allowed in (("mm_projector_type", "mlp2x_gelu"), ("image_aspect_ratio", r"anyres_max_\d+")):
        given = settings.get(key)
        if not re.fullmatch(allowed, str(given)):
            raise ValueError(f"{folder} has {key}={given!r}; LLaVA-OneVision of transformers has {allowed} alone.")
    return settings


def _trained_as(settings: Mapping[str, Any]) -> str:
    """The backbone whose rule for videos the checkpoint was trained with, by its newlines: per row, or per video.

    mm_spatial_pool_mode does not say it, since the authors' evaluation of LLaVA-Video sets averages in its place.
    """
    return "llava_video" if settings.get("mm_newline_position") == "grid" else "llava_onevision"


def _stock_config(
    settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, vision: Path | None
) -> LlavaOnevisionConfig:
    """The settings of the stock model; ids of the marks are those in the tokenizer."""
    text = config_within("qwen2", settings)
    seen = _vision_sizes(settings, vision)
    ids: Any = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    image, video = ids
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
        image_grid_pinpoints=_image_sizes(settings.get("image_grid_pinpoints"), seen["image_size"]),
        vision_aspect_ratio=settings["image_aspect_ratio"],
        tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
        architectures=["LlavaOnevisionForConditionalGeneration"],
        dtype=settings.get("dtype") or settings.get("torch_dtype") or "bfloat16",
    )


def _vision_sizes(settings: Mapping[str, Any], vision: Path | None) -> dict[str, Any]:
    """SigLIP's settings as LLaVA uses it: without head and last layer, whatever mm_vision_select_layer says."""
    name = str(settings.get("mm_vision_tower"))
    if vision is not None:
        stated = read_settings(vision / "config.json", "to know the encoder's sizes")
        sizes = SiglipVisionConfig(**stated.get("vision_config", stated)).to_dict()
    elif name.rstrip("/").endswith("siglip-so400m-patch14-384"):
        sizes = _SO400M
    else:
        raise ValueError(f"The sizes of the encoder {name!r} are not known here; give its directory: --vision DIR.")
    kept = {key: value for key, value in sizes.items() if key not in ("architectures", "torch_dtype", "dtype")}
    layers = sizes["num_hidden_layers"] - 1
    return kept | {"model_type": "siglip_vision_model", "num_hidden_layers": layers, "vision_use_head": False}


def _image_sizes(given: Any, side: int) -> list[list[int]]:
    """Sizes that images are cut from, as a list; "(1x1),...,(6x6)" counts them in tiles of `side` pixels."""
    if isinstance(given, list) and given:
        return given
    tiles = [int(number) for number in re.findall(r"\d+", str(given))]
    if len(tiles) != 4:
        raise ValueError(f"image_grid_pinpoints={given!r}; it is a list of sizes, or '(1x1),...,(6x6)'.")
    rows, columns = range(tiles[0], tiles[2] + 1), range(tiles[1], tiles[3] + 1)
    return [[side * row, side * column] for row in rows for column in columns]


# ---- names


def _tensors_in(folder: Path) -> dict[str, _Stored]:
    """Every tensor of a directory by name; ValueError if some files are absent or damaged."""
    check_files(folder, weights=True)
    return {
        name: _Stored(tensor, f"{folder.name}/{file.name}: {name}")
        for file in weight_files(folder)
        for name, tensor in read_tensors(file).items()
    }


def _published_tensors(checkpoint: Path, language: Path | None, vision: Path | None) -> dict[str, _Stored]:
    """All published tensors by their name in the checkpoint.

    A part that the checkpoint holds no tensor of is read from the directory of that part.
    """
    found = _tensors_in(checkpoint)
    if vision is not None and not any(re.match(_TOWER, name) for name in found):
        prefix = r"model.vision_tower.vision_tower.\g<0>"
        found |= {re.sub("^vision_model.", prefix, name): each for name, each in _tensors_in(vision).items()}
    if language is not None and not any(name.startswith("model.layers.") for name in found):
        found = _tensors_in(language) | found
    return found


def _sort_names(found: Mapping[str, _Stored], config: LlavaOnevisionConfig) -> NameReport:
    """New names of the published tensors, which are the stock model's exactly; else ValueError names what is wrong."""
    left_out = {name: why for name in found if (why := _left_out(name, config)) is not None}
    check_depth(config.to_dict(), len(found), "the model")
    report = NameReport.of(sorted(found), _DROPPED, _renamed, left_out)
    taken = {new: found[old].tensor for new, old in report.taken.items()}
    stated = shapes_of(lambda: LlavaOnevisionForConditionalGeneration(config))
    head = "lm_head.weight" if config.tie_word_embeddings else None
    expected = {_published(name): shape for name, shape in stated.items() if name != head}
    advice = "A part that the checkpoint does not hold is taken from --language DIR or --vision DIR."
    check_complete("the model", taken, expected, report.unknown, advice, report.taken)
    return report


def _renamed(name: str) -> str | None:
    return next((re.sub("^" + old, new, name) for old, new in _RENAMED if re.match(old, name)), None)


def _left_out(name: str, config: Any) -> str | None:
    """Why a tensor is dropped for this model's sizes, None if it is not."""
    layer = re.match(_TOWER + r"encoder\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) >= config.vision_config.num_hidden_layers:
        return "LLaVA leaves out the encoder's last layer"
    return "the head is tied to the embeddings" if name == "lm_head.weight" and config.tie_word_embeddings else None


def _published(name: str) -> str:
    name = name.removeprefix("model.")
    name = re.sub(r"^language_model\.", "language_model.model.", name)
    name = re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)
