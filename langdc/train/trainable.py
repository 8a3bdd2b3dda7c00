"""What of a model is trained: parameters chosen by glob patterns, and adapters."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn


def _select(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """The names that match any pattern; `*` also crosses dots.

    Raises ValueError that lists every pattern without a match, with the nearest names.
    """
    names = list(names)
    matched = {pattern: {name for name in names if fnmatchcase(name, pattern)} for pattern in patterns}
    if idle := [pattern for pattern, found in matched.items() if not found]:
        lines = [f"  {each!r} matches no parameter. Nearest: {', '.join(_nearest(each, names))}" for each in idle]
        raise ValueError("trainable holds patterns without effect:\n" + "\n".join(lines))
    return set().union(*matched.values())


def _nearest(pattern: str, names: list[str]) -> list[str]:
    """Names, cut to the pattern's depth, that look most like it."""
    depth = len(pattern.split("."))
    parts = [name.split(".") for name in names]
    cut = sorted({".".join(p if len(p) <= depth else [*p[: depth - 1], "*"]) for p in parts})
    return difflib.get_close_matches(pattern, cut, n=3, cutoff=0.3) or cut[:3]


def unfreeze(model: nn.Module, patterns: Iterable[str], adapters: bool = False) -> set[str]:
    """Freeze a model but for the parameters that match and, if asked, its adapters. Returns the trained names."""
    names = [name for name, _ in model.named_parameters()]
    chosen = _select(names, patterns) | {name for name in names if adapters and ".lora_" in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return chosen
