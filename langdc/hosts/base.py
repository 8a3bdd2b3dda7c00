"""The zoo of hosts, and which of them a checkpoint directory is for."""

import json
from pathlib import Path

from langdc.interfaces import Host
from langdc.registry import Registry

hosts: Registry[Host] = Registry("host")


def host_of(folder: Path) -> str:
    """The host for a stock checkpoint, by its config.json; ValueError where there is none."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no model: neither langdc.json nor config.json. Give a checkpoint directory.")
    kind = json.loads(file.read_text()).get("model_type")
    found = [name for name in hosts.names() if kind in getattr(hosts.get(name), "model_types", ())]
    if not found:
        served = sorted({t for name in hosts.names() for t in getattr(hosts.get(name), "model_types", ())})
        raise ValueError(f"{folder} is a {kind!r} model; no host serves it. Served are: {', '.join(served)}.")
    return found[0]
