"""Names of version 0.1 and what they are called now; read with one warning until version 0.3.

Everything old that is still read is in the tables of this file: settings, tensor names and patterns over them.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from langdc.log import get_logger

logger = get_logger(__name__)

KEYS = {"host": "backbone", "most_side": "max_side", "reforge": "compact_positions", "most": "max_tokens"}
"""Keys of a config or of a checkpoint's settings, at any depth."""
VALUES = {"saturated_guide": "saturated_question"}
"""Values in lists of a config, such as `defects`."""
TENSORS = (
    (re.compile(r"^host\."), "backbone."),
    (re.compile(r"^(compressor\.(?:.+\.)?(?:segment_marker|queries|frame|row|column|stream))$"), r"\1.weight"),
)
"""Patterns in names of tensors, also in `trainable` patterns."""
SPLIT = (
    (re.compile(r"^(compressor\..*attention\.)in_proj_(weight|bias)$"), (r"\1query.\2", r"\1key_value.\2"), (1, 2)),
)
"""Tensors that are several now: names of the parts, and the share of rows of each."""
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
    return {_present(KEYS, key): settings(value) for key, value in tree.items()}


def keywords(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Keyword arguments of a zoo's member under their present names; those that it has (`known`) stay."""
    found = {name if name in known else _present(KEYS, name): value for name, value in given.items()}
    return {
        name: [_present(VALUES, item) for item in value] if isinstance(value, list) else value
        for name, value in found.items()
    }


def _present(table: Mapping[str, str], old: Any) -> Any:
    new = table.get(old, old) if isinstance(old, str) else old
    if new != old:
        warn_once(old, new)
    return new


def tensor_name(name: str) -> str:
    """The present name of a tensor of 0.1, or of a pattern over such names."""
    for pattern, new in TENSORS:
        name = pattern.sub(new, name)
    return name


def tensors(found: Mapping[str, Tensor], known: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors of a checkpoint of 0.1 under their present names; those of `known` names stay as they are."""
    present: dict[str, Tensor] = {}
    for name, tensor in found.items():
        present |= {name: tensor} if name in known else _split(tensor_name(name), tensor)
    return present


def _split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    for pattern, parts, shares in SPLIT:
        if pattern.match(name):
            rows = [len(tensor) * share // sum(shares) for share in shares]
            return {pattern.sub(p, name): rest.clone() for p, rest in zip(parts, tensor.split(rows), strict=True)}
    return {name: tensor}
