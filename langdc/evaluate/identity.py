"""What an evaluation is an evaluation of: config, weights, data, package version; and on which machine it ran."""

import inspect
import os
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from langdc import __version__, devices
from langdc.backbones import backbones
from langdc.compressors import compressors
from langdc.encoders import encoders
from langdc.evaluate.models import model_files, named_files
from langdc.evaluate.settings import EvalConfig
from langdc.evaluate.tasks import Task, tasks
from langdc.frameselectors import frameselectors
from langdc.hashing import file_hash, json_hash
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import layercompressors

ZOOS = (compressors, kvcompressors, layercompressors, frameselectors, backbones, tasks, encoders)
PACKAGES = ("torch", "torchvision", "transformers", "peft", "safetensors", "av", "decord", "numpy", "scipy")


def identity(config: EvalConfig, task: Task) -> dict[str, Any]:
    """What must stay the same for an evaluation to be resumed."""
    entries = config.all_entries
    files = {str(model): model_files(model) for model in dict.fromkeys(entry.model for entry in entries)}
    parts = {"backbone", "compressor", "layers", "kv", "frames"}
    others = [entry.model_dump(mode="json", include=parts) for entry in entries]
    dtype = devices.dtype_named(config.dtype, devices.named(config.device))  # what "auto" is here
    # what changes no answer
    free = {**dict.fromkeys(["output", "watchdog", *config.judging], True), "entries": {"__all__": {"repeats"}}}
    found: dict[str, Any] = {
        "config": {
            **config.model_dump(mode="json", exclude=free),
            "dtype": str(dtype or config.dtype).removeprefix("torch."),
        },
        "weights_sha256": {entry.name: json_hash(files[str(entry.model)]) for entry in entries},
        "files": {**named_files(others), **files},
        "data_sha256": task.data_hash(),
        "version": __version__,
    }
    if config.calibration is not None and any(entry.calibrated for entry in entries):
        found["calibration_sha256"] = file_hash(config.calibration.data)
    return found


def plugin_sources(config: EvalConfig) -> dict[str, str]:
    """By module the sha256 of the source of every member that the config names and that is defined outside langdc."""
    root, found = Path(__file__).resolve().parent.parent, {}
    for member in _members(config.model_dump(mode="json")):
        path = Path(inspect.getsourcefile(member) or "")
        if path.is_file() and not path.resolve().is_relative_to(root):
            found[member.__module__] = file_hash(path)
    return found


def _members(settings: Any) -> Iterator[Callable]:
    """The members of zoos that settings name, at any depth."""
    if isinstance(settings, list):
        for value in settings:
            yield from _members(value)
    elif isinstance(settings, dict):
        name: Any = settings.get("name")
        for zoo in ZOOS if isinstance(name, str) else ():
            with suppress(ValueError):  # of another zoo
                yield zoo.get(name)
        yield from _members(list(settings.values()))


def describe_machine(command: Sequence[str]) -> dict:
    """Time, command, code, packages and hardware of a start."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(command),
        "version": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in PACKAGES if find_spec(name)},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: *(.*)$", info.read_text() if info.is_file() else "", re.M)
    return found[1] if found else platform.processor()


def _commit() -> str | None:
    """The commit of the source tree, with a + if files differ from it; None outside a repository."""
    command = ["git", "status", "--porcelain=v2", "--branch"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    first, *lines = found.stdout.splitlines()  # "# branch.oid <commit>"
    return first.split()[-1] + ("" if all(line.startswith("#") for line in lines) else "+")
