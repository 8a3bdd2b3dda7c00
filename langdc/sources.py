"""Weights by name: a folder, a packaged or tiny model, a Hugging Face id, or an architecture drawn at random."""

import difflib
import importlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from langdc import devices
from langdc.config import Settings, check
from langdc.jsonl import read_json
from langdc.log import get_logger

# Every part that loads weights imports this module first: no progress bars of others, no loud guess at the accelerator.
transformers_logging.disable_progress_bar()
devices.tell_deepspeed()

logger = get_logger(__name__)

PREFIXES = {"sample": "langdc.sample:weights", "tiny": "langdc.tiny:folder"}
"""Sources "PREFIX:NAME", each with the "module:function" that turns NAME into a folder or an `Architecture`."""
_ADVICE = (
    "Give a folder in Hugging Face layout, an id such as Qwen/Qwen2.5-VL-7B-Instruct, 'sample:NAME', 'tiny:NAME', or "
    "{config: {...}, init: random} for random weights."
)
_FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_LEFT_OUT = ["original/*", "onnx/*", "openvino/*"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LFS_POINTER = b"version https://git-lfs"


class Architecture(Settings):
    """Sizes in place of a checkpoint, with weights drawn at random: for tests, planning, training from scratch."""

    config: dict
    init: Literal["random"]

    def sizes(self) -> PretrainedConfig:
        """The settings as transformers holds them; ValueError for a model type that it does not know."""
        kind = str(self.config.get("model_type"))
        if kind not in CONFIG_MAPPING:
            near = ", ".join(difflib.get_close_matches(kind, CONFIG_MAPPING.keys(), n=3))
            raise ValueError(f"transformers has no model_type {kind!r}. Nearest: {near or 'none; qwen2 is one'}.")
        return AutoConfig.for_model(**self.config)


Source = str | dict


def resolve(source: Source, weights: bool = False) -> Path | Architecture:
    """The folder or architecture that a source names.

    A source is a folder, "sample:NAME" (`PREFIXES`), a Hugging Face id, or {config: ..., init: random}. An id is looked
    up in the local cache, then fetched if the network allows. ValueError if it is not there, or if a file in the folder
    is damaged; with `weights` also if the folder holds no safetensors, unless torch's default device is "meta".
    """
    if isinstance(source, dict):
        return check(Architecture, source, "a model source")
    prefix, colon, name = source.partition(":")
    if colon and prefix in PREFIXES:
        module, _, function = PREFIXES[prefix].partition(":")
        found = getattr(importlib.import_module(module), function)(name)
    else:
        found = Path(source) if Path(source).is_dir() else _of_hub(source)
    if isinstance(found, Path):
        check_files(found, weights and torch.get_default_device().type != "meta")
    return found


def is_packaged(source: object) -> bool:
    """Whether a source comes with the package, such as "sample:NAME"."""
    return isinstance(source, str) and source.partition(":")[0] in PREFIXES and ":" in source


# ---- Hugging Face


def _of_hub(source: str) -> Path:
    """The snapshot of a Hugging Face id in the local cache, which is fetched if it is not complete there."""
    if not _HUB_ID.fullmatch(source):
        raise ValueError(f"There is no checkpoint directory {source!r}. {_ADVICE}")
    cached = _snapshot(source, local_files_only=True)
    if isinstance(cached, Path):
        with suppress(ValueError):  # of files that are not complete: they are fetched below
            check_files(cached, weights=True)
            return cached
    offline = os.environ.get("HF_HUB_OFFLINE", os.environ.get("TRANSFORMERS_OFFLINE", ""))
    if Path(source).parent.is_dir():  # a mistyped path is not asked for on the network
        why = f"the folder {Path(source).parent} is here, so a path was meant"
    elif constants.HF_HUB_OFFLINE or offline.upper() in ("1", "ON", "YES", "TRUE"):
        why = "HF_HUB_OFFLINE is set"
    else:
        fetched = _snapshot(source)
        if isinstance(fetched, Path):
            return fetched
        why = str(fetched).strip().partition("\n")[0]
    if isinstance(cached, Path):
        logger.warning("%s is not complete in the cache and could not be fetched: %s.", source, why)
        return cached
    raise ValueError(
        f"There is no checkpoint directory {source!r}, no model of that name in the Hugging Face cache {_cache()}, and "
        f"it was not fetched ({why}). An id is fetched, where there is a network, by: hf download {source}. {_ADVICE}"
    )


def _snapshot(source: str, local_files_only: bool = False) -> Path | Exception:
    """The folder of an id's newest revision, or the error that huggingface_hub gave."""
    settings: Any = {"cache_dir": _cache(), "allow_patterns": _FETCHED, "ignore_patterns": _LEFT_OUT}
    try:
        return Path(snapshot_download(source, local_files_only=local_files_only, **settings))
    except Exception as error:  # its errors and those of its HTTP client have no class in common
        return error


def _cache() -> str:
    """Where huggingface_hub keeps models, by the variables as they are now."""
    home = os.environ.get("HF_HOME")
    return os.environ.get("HF_HUB_CACHE") or (f"{home}/hub" if home else constants.HF_HUB_CACHE)


# ---- damaged files


def check_files(folder: Path, weights: bool = False) -> None:
    """ValueError names the first JSON or safetensors file that is damaged, or shards that an index lists in vain.

    With `weights` also if the folder holds no safetensors.
    """
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        with file.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ValueError(f"{file} is a git-lfs pointer, not the file itself. Fetch it with: git lfs pull")
        if file.suffix == ".json":
            read_json(file)
            continue
        try:
            with safe_open(file, "np"):  # compares the length that its head states with the file's
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} is no whole safetensors file ({error}). Copy it again.") from None
    if weights:
        _check_weights(folder)
    check_shards(folder, "*.safetensors.index.json")


def check_shards(folder: Path, pattern: str) -> None:
    """ValueError names the files that an index in the folder lists in vain; `pattern`: of the index's name."""
    for index in sorted(folder.glob(pattern)):
        listed = read_json(index).get("weight_map", {})
        lacking = sorted({str(name) for name in listed.values() if not (folder / name).is_file()})
        if lacking:
            raise ValueError(f"{folder} lacks {', '.join(lacking)}, which {index.name} lists. Copy the folder again.")


def _check_weights(folder: Path) -> None:
    if any(file.name != "adapter_model.safetensors" for file in folder.glob("*.safetensors")):
        return
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise ValueError(
            f"{folder} holds an adapter alone. Merge it into the model that it was trained on ({base}) with PEFT, and "
            "give the merged folder."
        )
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"{folder} holds pickled weights only ({pickled[0]}), which may run code when loaded. Save them as "
            "safetensors where you trust them."
        )
    raise ValueError(f"{folder} holds no weights (*.safetensors). Copy the whole folder.")
