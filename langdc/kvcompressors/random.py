"""Random keys: the baseline of every KV compressor. Letters: G key heads, Q queries, n keys scored."""

import torch
from torch import Tensor

from langdc.kvcompressors.allocators import Allocator
from langdc.kvcompressors.base import BestKeysKV, kvcompressors
from langdc.kvcompressors.scorers import Scorer
from langdc.types import Plan


class _RandomScorer(Scorer):
    """Random scores from a seed, the same on every device."""

    def __init__(self, seed: int) -> None:
        self.seed, self.generator = seed, torch.Generator()

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.rand(1, key.shape[2], generator=self.generator).to(key.device)


@kvcompressors.register("random")
class RandomKV(BestKeysKV):
    """Keep random keys of every chunk, different ones in every layer; the same ones for the same `seed`."""

    def __init__(
        self, keep: float | None = None, tokens: int | None = None, seed: int = 0,
        allocator: str | dict | Allocator = "even", chunk_frames: int = 32
    ) -> None:  # fmt: skip
        self.random_scorer = _RandomScorer(seed)
        super().__init__(keep, tokens, self.random_scorer, allocator, chunk_frames)

    def begin(self, plan: Plan) -> None:
        super().begin(plan)
        self.random_scorer.generator.manual_seed(self.random_scorer.seed)
