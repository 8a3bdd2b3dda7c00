"""The zoo of backbones, and which of them a checkpoint directory is for."""

from pathlib import Path
from typing import Any

from langdc import compat
from langdc.interfaces import Backbone
from langdc.modelfiles import check_files, read_settings
from langdc.registry import Registry

backbones: Registry[Backbone] = Registry("backbone", Backbone)


def backbone_of(folder: Path) -> str:
    """The backbone for a stock checkpoint, by its config.json; ValueError where there is none."""
    file = folder / "config.json"
    if not file.is_file():
        check_files(folder, weights=(folder / "adapter_config.json").is_file())
        raise ValueError(f"{folder} holds no model: neither langdc.json nor config.json. Give a checkpoint directory.")
    kind = read_settings(file).get("model_type")
    found = [name for name in backbones.names() if kind in getattr(backbones.get(name), "model_types", ())]
    if not found:
        served = sorted({t for name in backbones.names() for t in getattr(backbones.get(name), "model_types", ())})
        raise ValueError(f"{folder} is a {kind!r} model; no backbone serves it. Served are: {', '.join(served)}.")
    return found[0]


def __getattr__(name: str) -> Any:
    return compat.member(__name__, name)
