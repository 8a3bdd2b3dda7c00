"""The record of every published tensor, and the shapes that a model needs."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

SHOWN = 8


@dataclass
class NameReport:
    """`taken`: old names by new ones; `dropped`: old names with the reason; `unknown`: names that nobody expects."""

    taken: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        names: Iterable[str],
        dropped: Sequence[tuple[str, str]],
        renamed: Callable[[str], str | None],
        more: Mapping[str, str] = {},
    ) -> "NameReport":
        """Sort published names: dropped by the first (pattern, reason) or in `more`, else taken as `renamed`."""
        report = cls(dropped=dict(more))
        for name in names:
            reason = more.get(name) or next((why for pattern, why in dropped if re.match(pattern, name)), None)
            new = renamed(name)
            if reason is not None:
                report.dropped[name] = reason
            elif new is None:
                report.unknown.append(name)
            else:
                report.taken[new] = name
        return report

    def join(self, other: "NameReport", prefix: str = "") -> None:
        """Add another part's report, its new names behind `prefix`."""
        self.taken |= {f"{prefix}{new}": old for new, old in other.taken.items()}
        self.dropped |= other.dropped
        self.unknown += other.unknown

    def lines(self) -> list[str]:
        """For the screen: the number of tensors taken, and of those dropped for each reason."""
        reasons = list(self.dropped.values())
        first = f"{len(self.taken)} tensors taken, {len(self.dropped)} dropped, none missing"
        return [first, *(f"  dropped {reasons.count(reason)}: {reason}" for reason in sorted(set(reasons)))]


def shapes_of(build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a module, by name; it is built without weights."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
