"""Reading published tensors without running code that a file may hold, and writing a part's directory."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from langdc import sources

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_PARALLEL = "module."  # before every name after training on several devices


def read_json(file: Path, purpose: str) -> dict[str, Any]:
    """A JSON file as a mapping; ValueError if it is absent or damaged. `purpose` ends the sentence "... is needed"."""
    if not file.is_file():
        raise ValueError(f"There is no {file}, which is needed {purpose}. Give the whole published directory.")
    found = sources.read_json(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, not an object of settings. Copy it again.")
    return found


def chat_template(name: str) -> str:
    """The authors' chat template by name: "qwen2" or "phi3" of a release, or "llava_video" (their qwen_1_5).

    In a release the backbone puts the system message first; in LLaVA's each video stands on a line of its own.
    """
    return Path(__file__).with_name(f"{name}.jinja").read_text().removesuffix("\n")


def read_config(folder: Path, what: str) -> PretrainedConfig:
    """The settings of a Hugging Face directory; ValueError if it holds no model that transformers knows."""
    read_json(folder / "config.json", f"to know the sizes of {what}")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{folder} holds no model that transformers knows ({error}). Give that of {what}.") from None


def config_within(model_type: str, settings: Mapping[str, Any]) -> PretrainedConfig:
    """The settings of a language model that a release states among its own."""
    known = {*CONFIG_MAPPING[model_type]().to_dict(), "rope_theta", "rope_scaling"} - {"model_type", "architectures"}
    return CONFIG_MAPPING[model_type](**{name: value for name, value in settings.items() if name in known})


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .bin or .pt file, on the CPU; those of a training state are taken out of it.

    Pickles are read with `weights_only`. ValueError for code, for other things than tensors, and for files cut off.
    """
    if not file.is_file():
        raise ValueError(f"There is no file of weights {file}. Give a local file (nothing is downloaded).")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no whole safetensors file ({error}). Copy it again.") from None
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file} is no plain file of tensors: it is cut off, or holds objects whose code would run on loading "
            f"({reason}). Copy it again, or save its tensors as safetensors where you trust it."
        ) from None
    except (RuntimeError, EOFError, OSError, BadZipFile, ValueError, KeyError) as error:
        raise ValueError(f"{file} is no whole file of weights ({error}). Copy it again.") from None
    for key in ("module", "model", "state_dict"):  # DeepSpeed's and plain training states keep the weights under these
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{file} holds a {type(found).__name__}; a mapping from names to tensors is needed.")
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{file} holds more than tensors: {', '.join(others[:8])}. Save the weights alone.")
    if all(name.startswith(_PARALLEL) for name in found):
        return {name.removeprefix(_PARALLEL): tensor for name, tensor in found.items()}
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a Hugging Face directory's weights: safetensors, else the older .bin; [] if none."""
    return next((files for pattern in _WEIGHTS if (files := sorted(folder.glob(pattern)))), [])


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face directory, which may be in several files; ValueError if some files are absent."""
    sources.check_files(folder)
    files = weight_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin). Copy it whole.")
    sources.check_shards(folder, f"*{files[0].suffix}.index.json")
    return {name: tensor for file in files for name, tensor in read_tensors(file).items()}


def write_part(folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Write model.safetensors and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(copies, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
