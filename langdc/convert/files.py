"""Reading published folders, and writing a part's directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig

from langdc import modelfiles


def chat_template(name: str) -> str:
    """The authors' chat template by name: "qwen2" or "phi3" of a release, or "llava_video" (their qwen_1_5).

    In a release the backbone puts the system message first; in LLaVA's each video stands on a line of its own.
    """
    return Path(__file__).with_name(f"{name}.jinja").read_text().removesuffix("\n")


def config_within(model_type: str, settings: Mapping[str, Any]) -> PretrainedConfig:
    """The settings of a language model that a release states among its own."""
    known = {*CONFIG_MAPPING[model_type]().to_dict(), "rope_theta", "rope_scaling"} - {"model_type", "architectures"}
    return CONFIG_MAPPING[model_type](**{name: value for name, value in settings.items() if name in known})


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face directory, which may be in several files; ValueError if some files are absent."""
    modelfiles.check_files(folder, weights=True)
    files = modelfiles.weight_files(folder)
    return {name: tensor for file in files for name, tensor in modelfiles.read_tensors(file).items()}


def write_part(folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Write model.safetensors and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(copies, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
