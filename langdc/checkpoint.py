"""A trained model as one directory: what was trained, where the rest comes from, and how it was made.

`model.safetensors` holds the tensors that differ from the published parts, `langdc.json` the settings that build the
model, the identity of every part and the training record. Nothing is unpickled.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langdc import compat, jsonl
from langdc.adapters import attach_lora
from langdc.backbones import backbone_of
from langdc.config import LoraConfig, MemberConfig, ModelConfig, check
from langdc.hashing import file_hash, is_part, part_identity
from langdc.model import VideoModel
from langdc.sources import is_packaged, resolve
from langdc.version import __version__

WEIGHTS = "model.safetensors"
CARD = "langdc.json"
HERE = "./"  # begins the path of a part that lies in the checkpoint's own directory
NEEDED = frozenset({"model", "lora", "parts", "weights_sha256"})
ADVICE = "Give the directory that a training stage printed at its end, or 'sample:langdc' for the one that ships."


def own_tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The named parameters, each storage once: tied weights appear under their first name."""
    wanted, seen, found = set(names), set(), {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in wanted and parameter.data_ptr() not in seen:
            seen.add(parameter.data_ptr())
            found[name] = parameter.detach()
    return found


def save(
    model: VideoModel, directory: Path, *, tensors: dict[str, Tensor], lora: LoraConfig | None = None, info: dict
) -> None:
    """Write a checkpoint: `tensors` are those that differ from the parts the settings name.

    `info` joins `langdc.json`, the card: stage, data hash, training record. It is written last: a directory with one is
    whole. Files of a run that are in it already stay.
    """
    write(model.config, directory, tensors=tensors, lora=lora, info=info)


def write(
    config: ModelConfig, directory: Path, *, tensors: dict[str, Tensor], lora: LoraConfig | None = None, info: dict
) -> None:
    """As `save`, of a model that was never built. Parts that lie in the directory itself are found after it moved."""
    directory.mkdir(parents=True, exist_ok=True)
    with jsonl.writing(directory / CARD) as card_file, jsonl.writing(directory / WEIGHTS) as weights:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, weights)
        card = {
            "version": __version__,
            "model": _inside(config.model_dump(mode="json"), directory),
            "lora": lora.model_dump(mode="json") if lora else None,
            "weights_sha256": file_hash(weights),
            "parts": {_inside(source, directory): part_identity(folder) for source, folder in _parts(config).items()},
            **info,
        }
        card_file.write_text(json.dumps(card, indent=1))


def _inside(tree: Any, directory: Path) -> Any:
    """Settings with every path below a directory written as "./..."."""
    if isinstance(tree, dict):
        return {key: _inside(value, directory) for key, value in tree.items()}
    below = isinstance(tree, str) and tree.startswith(f"{directory}/")
    return f"{HERE}{tree.removeprefix(f'{directory}/')}" if below else tree


def _placed(tree: Any, directory: Path) -> Any:
    """The opposite of `_inside`."""
    if isinstance(tree, dict):
        return {_placed(key, directory): _placed(value, directory) for key, value in tree.items()}
    return str(directory / tree) if isinstance(tree, str) and tree.startswith(HERE) else tree


def _sources(settings: object) -> list[str]:
    """Every weight source that settings name, at any depth."""
    if isinstance(settings, dict):
        keys = ("source", "language_model", "captioner")
        named = [settings[key] for key in keys if isinstance(settings.get(key), str)]
        return named + [s for value in settings.values() for s in _sources(value)]
    return []


def _parts(config: ModelConfig) -> dict[str, Path]:
    """The folders of the published parts that settings name, by how they name them."""
    tree = {"backbone": config.backbone.settings, "compressor": config.compressor.settings}
    found = {source: resolve(source) for source in sorted(set(_sources(tree)))}
    return {source: folder for source, folder in found.items() if isinstance(folder, Path)}


def _has_random_parts(settings: object) -> bool:
    if not isinstance(settings, dict):
        return False
    return settings.get("init") == "random" or any(map(_has_random_parts, settings.values()))


def locate(directory: str | Path) -> Path:
    """The directory of a checkpoint, which may be one that ships ("sample:langdc"); ValueError if there is none."""
    found = resolve(str(directory)) if is_packaged(str(directory)) else Path(directory)
    if not (isinstance(found, Path) and found.is_dir()):
        raise ValueError(f"There is no checkpoint directory {directory}. {ADVICE}")
    return found


def weights_hash(directory: Path) -> str:
    """The sha256 of a checkpoint's weights; of a stock model the `part_identity`."""
    if (directory / CARD).is_file():
        return read_card(directory)["weights_sha256"]
    return part_identity(directory)


def read_card(directory: Path) -> dict:
    """The contents of `langdc.json`; ValueError if the directory holds no checkpoint or that file is damaged."""
    file = Path(directory) / CARD
    if not file.is_file():
        raise ValueError(f"{directory} holds no LangDC checkpoint (no {CARD}). {ADVICE}")
    try:
        card = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); it was cut off. Copy the checkpoint again.") from None
    lacking = NEEDED - set(card) if isinstance(card, dict) else NEEDED
    if lacking:
        raise ValueError(
            f"{file} lacks {', '.join(sorted(lacking))}: it was changed, or another version of langdc than this one "
            f"({__version__}) wrote it. Copy or train the checkpoint again."
        )
    model = compat.settings(_placed(card["model"], file.parent))
    return {**card, "model": model, "parts": _placed(card["parts"], file.parent)}


def _read_weights(directory: Path, card: dict, model: nn.Module) -> dict[str, Tensor]:
    file = directory / WEIGHTS
    if not file.is_file() or file_hash(file) != card["weights_sha256"]:
        raise ValueError(f"{file} is not the file that {CARD} describes: missing, cut off or replaced. Copy both.")
    return compat.tensors(load_file(file), dict(model.named_parameters()))


def saved_names(directory: str | Path) -> list[str]:
    """Names of the tensors that a checkpoint's own file holds."""
    with safe_open(locate(directory) / WEIGHTS, "pt") as opened:
        return list(map(compat.tensor_name, opened.keys()))


def load(directory: str | Path, plain: bool = False) -> VideoModel:
    """Build the model of a checkpoint with its weights, in evaluation mode.

    `plain`: as any CPU can, whatever the settings say: whole weights instead of 4 bits, attention by sdpa.

    ValueError names every tensor that is unexpected or of another shape, every part whose file has changed since
    training, and a weights file that is not the one saved.
    """
    folder = locate(directory)
    card = read_card(folder)
    settings = {name: {**part, **_plain(part)} for name, part in card["model"].items()} if plain else card["model"]
    config = check(ModelConfig, settings, f"{folder / CARD}")
    _check_parts(config, card, folder)
    model = VideoModel(config)
    if card["lora"] is not None:
        attach_lora(model.backbone, check(LoraConfig, card["lora"], "lora"))
    tensors = _read_weights(folder, card, model)
    load_tensors(model, tensors, folder)
    drawn = (name for name, _ in model.named_parameters() if name.startswith("backbone.projectors."))
    model.untrained = frozenset(drawn) - set(tensors)
    return model.eval().requires_grad_(False)


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (("quantize", None), ("attention", "sdpa")) if key in part}


def open_model(directory: str | Path, backbone: Mapping[str, Any] | None = None) -> VideoModel:
    """A checkpoint of a training stage, or a stock vision-language model in Hugging Face layout, ready to be asked.

    `backbone`: settings of a stock model's backbone (frames, fps, ...), and its name where the directory serves
    several.
    """
    folder = locate(directory)
    if (folder / CARD).is_file():
        if backbone:
            raise ValueError(f"{folder} brings its backbone's settings along; leave out {', '.join(backbone)}.")
        return load(directory)
    settings = {"name": backbone_of(folder), "source": str(folder), **(backbone or {})}
    config = ModelConfig(backbone=check(MemberConfig, settings, "backbone"), compressor=MemberConfig(name="identity"))
    return VideoModel(config).eval().requires_grad_(False)


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Copy tensors into the parameters of the same names; ValueError lists all that do not fit."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unexpected = sorted(set(tensors) - set(parameters))
    misshapen = sorted(
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(parameters[name].shape)} in the model"
        for name in tensors
        if name in parameters and tensors[name].shape != parameters[name].shape
    )
    if unexpected or misshapen:
        lines = [f"not in the model: {name}" for name in unexpected[:8]] + misshapen[:8]
        raise ValueError(
            f"The checkpoint {where} is of another architecture ({len(unexpected)} tensors unknown, {len(misshapen)} "
            "of another shape). Load it with the settings it was trained with. First of them:\n  " + "\n  ".join(lines)
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def start(config: ModelConfig, directory: Path | None) -> tuple[VideoModel, dict[str, Tensor]]:
    """A model to train: built from its parts, then given the tensors of an earlier stage.

    Returns it with those tensors, which a later checkpoint must carry on. Settings may change between stages; tensors
    that fit nothing raise ValueError. Earlier LoRA adapters are attached first. Parts drawn at random are among the
    tensors, since nothing else holds them.
    """
    model = VideoModel(config)
    if directory is None:
        # what is in 4 bits comes from a directory, so it was not drawn
        names = [name for name, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()]
        return model, own_tensors(model, names) if _has_random_parts(config.model_dump()) else {}
    card = read_card(directory)
    _check_parts(config, card, directory)
    if card["lora"] is not None:
        attach_lora(model.backbone, check(LoraConfig, card["lora"], "lora"))
    tensors = _read_weights(directory, card, model)
    load_tensors(model, tensors, directory)
    _check_drawn(card["model"], config.model_dump(mode="json"), directory)
    return model, tensors


def _check_parts(config: ModelConfig, card: dict, where: Path) -> None:
    """Refuse a checkpoint whose frozen parts are not the ones it was trained on."""
    known = card["parts"]
    changed = [name for name, folder in _parts(config).items() if name in known and not is_part(folder, known[name])]
    if changed:
        raise ValueError(
            f"{where} was trained on other weights than those now at: {', '.join(changed)}. Bring the former ones "
            "back, or train it again."
        )


def _check_drawn(there: dict, now: dict, where: Path) -> None:
    """Refuse to start if a part drawn at random has other sizes now: a deeper one would stay random, unnoticed."""
    before, after = _drawn(there), _drawn(now)
    lines = [
        f"{path}.{key}: {before[path].get(key)!r} there, {after[path].get(key)!r} now"
        for path in sorted(before.keys() & after.keys())
        for key in sorted(before[path].keys() | after[path].keys())
        if before[path].get(key) != after[path].get(key)
    ]
    if lines:
        raise ValueError(
            f"The checkpoint {where} is of another architecture. Use its sizes, or start from another:\n  "
            + "\n  ".join(lines)
        )


def _drawn(settings: dict, path: str = "") -> dict[str, dict]:
    """The sizes of every part drawn at random, by where the settings name it."""
    if settings.get("init") == "random":
        return {f"{path}config": settings["config"]}
    below = ((f"{path}{key}.", value) for key, value in settings.items() if isinstance(value, dict))
    return {name: sizes for inner, value in below for name, sizes in _drawn(value, inner).items()}
