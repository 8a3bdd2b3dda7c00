"""Names of version 0.1 and what they are called now; read with one warning until version 0.3.

Everything old that is still read is in the tables of this file: settings, tensor names and patterns over them.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from langdc.log import get_logger

logger = get_logger(__name__)

KEYS = {"host": "backbone"}
"""Keys of a config or of a checkpoint's settings, at any depth."""
TENSORS = ((re.compile(r"^host\."), "backbone."),)
"""Prefixes and patterns in names of tensors, also in `trainable` patterns."""
_warned: set[str] = set()


def warn_once(old: str, new: str) -> None:
    """Say once per process that an old name was read."""
    if old not in _warned:
        _warned.add(old)
        logger.warning("%r is the name of version 0.1; it is now %r. The old one is read until version 0.3.", old, new)


def settings(tree: Any) -> Any:
    """Settings of 0.1 under their present keys; others come back as they are."""
    if isinstance(tree, list):
        return [settings(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    found = {}
    for key, value in tree.items():
        new = str(KEYS.get(key, key))
        if new != key:
            warn_once(key, new)
        found[new] = settings(value)
    return found


def tensor_name(name: str) -> str:
    """The present name of a tensor of 0.1, or of a pattern over such names."""
    for pattern, new in TENSORS:
        name = pattern.sub(new, name)
    return name


def tensors(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint of 0.1 under their present names."""
    return {tensor_name(name): tensor for name, tensor in found.items()}
