"""Keys by chance: what every method must beat.

Letters: G key heads, Q queries, n keys scored.
"""

import torch
from torch import Tensor

from langdc.kvcompressors.allocators import Allocator
from langdc.kvcompressors.base import BestKeysKV, kvcompressors
from langdc.kvcompressors.scorers import Scorer
from langdc.types import Plan


class Dice(Scorer):
    """Scores at random, from a seed; the same on every device."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.again()

    def again(self) -> None:
        """Start over from the seed."""
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.rand(1, key.shape[2], generator=self.generator).to(key.device)


@kvcompressors.register("random")
class RandomKV(BestKeysKV):
    """Keep keys of every chunk at random, in every layer others; the same ones whenever the `seed` is the same."""

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        seed: int = 0,
        allocator: str | dict | Allocator = "even",
        chunk_frames: int = 32,
    ) -> None:
        self.dice = Dice(seed)
        super().__init__(keep, tokens, self.dice, allocator, chunk_frames)

    def begin(self, plan: Plan) -> None:
        super().begin(plan)
        self.dice.again()
