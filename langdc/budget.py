"""One word everywhere: how much of a video may be kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """How much of a video may be kept: the fraction `keep` in (0, 1], or a number of `tokens`; else ValueError."""

    keep: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        keep, tokens = self.keep, self.tokens
        if (keep is None) == (tokens is None):
            given = "neither" if keep is None else f"both keep={keep} and tokens={tokens}"
            raise ValueError(f"A budget is either keep (a fraction) or tokens (a number); {given} was given. Give one.")
        if keep is not None and (isinstance(keep, bool) or not 0 < keep <= 1):
            raise ValueError(f"keep={keep} is not in (0, 1]; it is the fraction of tokens kept, such as 0.25.")
        if tokens is not None and (isinstance(tokens, bool) or tokens != int(tokens) or tokens < 1):
            raise ValueError(f"tokens={tokens} is not a whole number of at least 1; it is how many tokens are kept.")

    def share(self, total: int) -> float:
        """The fraction of `total` tokens that may be kept, at most 1."""
        if self.keep is not None:
            return float(self.keep)
        assert self.tokens is not None
        return min(1.0, self.tokens / total)

    def of(self, total: int) -> int:
        """How many of `total` tokens may be kept: at least one, at most all."""
        if self.tokens is not None:
            return min(self.tokens, total)
        # 0.29 of 100 is 29, though the product is 28.999999999999996
        return max(1, math.floor(self.share(total) * total + 1e-9))

    def least(self, share: float, total: int) -> str:
        """Advice for a budget that is too small, in its own unit, where `share` of `total` tokens is enough."""
        if self.tokens is None:
            return f"keep to at least {math.ceil(share * 1000) / 1000}"
        return f"tokens to at least {math.ceil(share * total - 1e-6)}"

    def covers(self, total: int) -> bool:
        """Whether nothing need be dropped."""
        return self.of(total) >= total

    def split(self, totals: Sequence[int]) -> list["Budget"]:
        """The budget of each of several streams, shared by their numbers of tokens; a fraction is the same for all."""
        if self.keep is not None or len(totals) == 1:
            return [self] * len(totals)
        wanted = [self.of(sum(totals)) * total / sum(totals) for total in totals]
        given = [math.floor(share) for share in wanted]
        by_rest = sorted(range(len(totals)), key=lambda i: given[i] - wanted[i])
        for i in by_rest[: self.of(sum(totals)) - sum(given)]:
            given[i] += 1
        return [Budget(tokens=max(1, number)) for number in given]
