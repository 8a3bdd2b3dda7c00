"""Reading published tensors without running anything that a file may hold."""

import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from langdc import sources

_INDEX_SUFFIX = ".index.json"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_SPREAD = "module."
"""What training on several devices puts before every name."""
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")


def read_json(file: Path, purpose: str) -> dict[str, Any]:
    """A JSON file as a mapping; ValueError if it is absent or damaged. `purpose` ends the sentence "... is needed"."""
    if not file.is_file():
        raise ValueError(f"There is no {file}, which is needed {purpose}. Give the whole published directory.")
    found = sources.read_json(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, not an object of settings. Copy it again.")
    return found


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .bin or .pt file, on the CPU; those of a training state are taken out of it.

    Pickles are read with `weights_only`, so that nothing in them runs. ValueError for code, other things than tensors,
    and files that are cut off.
    """
    if not file.is_file():
        raise ValueError(f"There is no file of weights {file}. Give a local file (nothing is downloaded).")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no whole safetensors file ({error}). Copy it again.") from None
    return _named_tensors(_unpickle(file), file)


def _unpickle(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file} is no plain file of tensors: it is cut off, or holds objects whose code would run on loading "
            f"({reason}). Copy it again, or save its tensors as safetensors where you trust it."
        ) from None
    except (RuntimeError, EOFError, OSError, BadZipFile, ValueError, KeyError) as error:
        raise ValueError(f"{file} is no whole file of weights ({error}). Copy it again.") from None


def _named_tensors(found: Any, file: Path) -> dict[str, Tensor]:
    for key in ("module", "model", "state_dict"):  # DeepSpeed's and plain training states keep the weights under these
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{file} holds a {type(found).__name__}; a mapping from names to tensors is needed.")
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{file} holds more than tensors: {', '.join(others[:8])}. Save the weights alone.")
    if all(name.startswith(_SPREAD) for name in found):
        return {name.removeprefix(_SPREAD): tensor for name, tensor in found.items()}
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a Hugging Face directory's weights: safetensors, else the older .bin; [] if none."""
    for pattern in _WEIGHTS:
        files = sorted(file for file in folder.glob(pattern) if not file.name.endswith(_INDEX_SUFFIX))
        if files:
            return files
    return []


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face directory, which may be in several files; ValueError if some files are absent."""
    files = weight_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin). Copy it whole.")
    found: dict[str, Tensor] = {}
    for file in files:
        found |= read_tensors(file)
    for index in folder.glob(f"*{_INDEX_SUFFIX}"):
        listed = read_json(index, "to know which files belong together").get("weight_map", {})
        lacking = sorted({str(file) for name, file in listed.items() if name not in found})
        if lacking and index.name.split(".")[1] == files[0].name.split(".")[1]:
            raise ValueError(
                f"{folder} is not complete: tensors of {', '.join(lacking[:8])} are absent. Copy it again."
            )
    return found
