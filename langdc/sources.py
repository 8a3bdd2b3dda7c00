"""Weights by name: a folder, a packaged or tiny model, a Hugging Face id, or an architecture drawn at random."""

import difflib
import importlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import constants, snapshot_download
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from langdc import devices
from langdc.config import Settings, check
from langdc.configfiles import SOURCES, check_source
from langdc.log import get_logger, progress
from langdc.modelfiles import TEXT_FILES, check_files, reading

# Every part that loads weights imports this module first: no progress bars of others, no loud guess at the accelerator.
transformers_logging.disable_progress_bar()
devices.tell_deepspeed()

logger = get_logger(__name__)

PREFIXES = {"sample": "langdc.sample:weights", "tiny": "langdc.tiny:folder"}
"""Sources "PREFIX:NAME", each with the "module:function" that turns NAME into a folder or an `Architecture`."""
_FETCHED = ["*.safetensors", *TEXT_FILES]
_LEFT_OUT = ["original/*", "onnx/*", "openvino/*"]


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
        with reading(f"{{config: {self.config}}}", "a model's settings"):
            return AutoConfig.for_model(**self.config)


Source = str | dict


def resolve(source: Source, weights: bool = False) -> Path | Architecture:
    """The folder or architecture that a source names.

    A source is a folder, "sample:NAME" (`PREFIXES`), a Hugging Face id, or {config: ..., init: random}. An id is looked
    up in the local cache, then fetched if the network allows. ValueError if it is not there, or if a file in the folder
    is damaged; with `weights` also if the folder holds none that transformers reads, unless torch's default device is
    "meta". Of a folder in the layout of the hub's cache its snapshot is taken.
    """
    if isinstance(source, dict):
        return check(Architecture, source, "a model source")
    prefix, colon, name = source.partition(":")
    if colon and prefix in PREFIXES:
        module, _, function = PREFIXES[prefix].partition(":")
        found = getattr(importlib.import_module(module), function)(name)
    else:
        found = _snapshot_in(Path(source)) if Path(source).is_dir() else _of_hub(source)
    if isinstance(found, Path):
        check_files(found, weights and torch.get_default_device().type != "meta")
    return found


# ---- Hugging Face


def _of_hub(source: str) -> Path:
    """The snapshot of a Hugging Face id in the local cache, which is fetched if it is not complete there."""
    check_source(source)
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
        f"it was not fetched ({why}). An id is fetched, where there is a network, by: hf download {source}. {SOURCES}"
    )


def _snapshot_in(folder: Path) -> Path:
    """The folder itself, or the snapshot that is in use of a "models--..." folder of a cache."""
    used = folder / "refs" / "main"
    return folder / "snapshots" / used.read_text().strip() if used.is_file() else folder


def _snapshot(source: str, local_files_only: bool = False) -> Path | Exception:
    """The folder of an id's newest revision, or the error that huggingface_hub gave."""
    settings: Any = {"cache_dir": _cache(), "allow_patterns": _FETCHED, "ignore_patterns": _LEFT_OUT}
    try:
        if local_files_only:
            return Path(snapshot_download(source, local_files_only=True, **settings))
        folder, size = Path(_cache(), f"models--{source.replace('/', '--')}"), None
        with suppress(Exception):  # without it the time left is not known
            planned = cast(Any, snapshot_download(source, local_files_only=False, dry_run=True, **settings))
            size = sum(file.file_size for file in planned if file.will_download) / 1e6
        with progress(f"Fetching {source}, MB", size or None, folder=folder):
            return Path(snapshot_download(source, local_files_only=False, **settings))
    except Exception as error:  # its errors and those of its HTTP client have no class in common
        return error


def _cache() -> str:
    """Where huggingface_hub keeps models, by the variables as they are now."""
    home = os.environ.get("HF_HOME")
    return os.environ.get("HF_HUB_CACHE") or (f"{home}/hub" if home else constants.HF_HUB_CACHE)
