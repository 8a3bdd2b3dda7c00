"""Where weights come from: a directory, a packaged sample model, a tiny one made on the spot, or random weights."""

import difflib
from pathlib import Path
from typing import Literal

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from langdc import devices, sample
from langdc.config import Settings, check

# Every part that loads weights passes here first: no progress bars of others, no loud guess at the accelerator.
transformers_logging.disable_progress_bar()
devices.tell_deepspeed()


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


def _tiny(name: str) -> Path:
    from langdc import tiny  # brings the processors of all families with it

    return tiny.folder(name)


_MADE = {"sample:": sample.weights, "tiny:": _tiny}
"""Prefixes of sources that the package has or makes itself."""


def is_packaged(source: object) -> bool:
    """Whether a source comes with the package: "sample:NAME" or "tiny:NAME"."""
    return isinstance(source, str) and source.startswith(tuple(_MADE))


def resolve(source: Source) -> Path | Architecture:
    """Turn a source into what a loader reads; ValueError if there is no such thing.

    A source is "sample:NAME" or "tiny:NAME", a directory, or {config: ..., init: random}.
    """
    if isinstance(source, dict):
        return check(Architecture, source, "a model source")
    for prefix, get in _MADE.items():
        if source.startswith(prefix):
            return get(source.removeprefix(prefix))
    if not Path(source).is_dir():
        raise ValueError(
            f"There is no checkpoint directory {source!r}. Give a local directory in Hugging Face layout (nothing is "
            "downloaded), 'sample:NAME' for a packaged one, 'tiny:NAME' for a tiny one made on the spot, or "
            "{config: {...}, init: random} for random weights."
        )
    return Path(source)
