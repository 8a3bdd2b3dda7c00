"""What became of every published tensor, and the refusal to go on when that does not make up the model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

SHOWN = 8


@dataclass
class NameReport:
    """`taken`: old names by new ones; `dropped`: old names with the reason; `unknown`: names that nobody expects."""

    taken: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def join(self, other: "NameReport", prefix: str = "") -> None:
        """Add another part's report; `prefix` goes before its new names."""
        self.taken |= {f"{prefix}{new}": old for new, old in other.taken.items()}
        self.dropped |= other.dropped
        self.unknown += other.unknown

    def as_json(self) -> dict:
        """What conversion.json holds."""
        return {"taken": self.taken, "dropped": self.dropped}

    def lines(self) -> list[str]:
        """For the screen: how many tensors were taken, and how many dropped for which reason."""
        reasons = list(self.dropped.values())
        first = f"{len(self.taken)} tensors taken, {len(self.dropped)} dropped, none missing"
        return [first, *(f"  dropped {reasons.count(reason)}: {reason}" for reason in sorted(set(reasons)))]


def check_complete(
    what: str,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    unknown: Iterable[str] = (),
    advice: str = "Copy the published files again, all of them.",
) -> None:
    """ValueError unless the tensors are exactly those expected, shapes included: none of the model may stay random."""
    misshapen = [
        f"{name}: {tuple(tensors[name].shape)}, the settings say {expected[name]}"
        for name in sorted(tensors.keys() & expected.keys())
        if tuple(tensors[name].shape) != tuple(expected[name])
    ]
    troubles = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unknown": sorted({*unknown, *(tensors.keys() - expected.keys())}),
        "of another shape": misshapen,
    }
    lines = [f"{len(names)} {kind}: {'; '.join(names[:SHOWN])}" for kind, names in troubles.items() if names]
    if lines:
        raise ValueError(f"The tensors do not make up {what}:\n  " + "\n  ".join(lines) + f"\n{advice}")
