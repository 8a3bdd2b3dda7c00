"""The zoo of backbones, and which of them a checkpoint directory is for."""

import json
from pathlib import Path

from langdc.interfaces import Backbone
from langdc.registry import Registry

backbones: Registry[Backbone] = Registry("backbone", Backbone)


def backbone_of(folder: Path) -> str:
    """The backbone for a stock checkpoint, by its config.json; ValueError where there is none."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no model: neither langdc.json nor config.json. Give a checkpoint directory.")
    kind = json.loads(file.read_text()).get("model_type")
    found = [name for name in backbones.names() if kind in getattr(backbones.get(name), "model_types", ())]
    if not found:
        served = sorted({t for name in backbones.names() for t in getattr(backbones.get(name), "model_types", ())})
        raise ValueError(f"{folder} is a {kind!r} model; no backbone serves it. Served are: {', '.join(served)}.")
    return found[0]
