"""Random keys: the baseline of every KV compressor. Letters: n keys scored."""

import torch
from torch import Tensor

from langdc.kvcompressors.allocators import Allocator
from langdc.kvcompressors.base import BestKeysKV, kvcompressors
from langdc.types import Plan


@kvcompressors.register("random")
class RandomKV(BestKeysKV):
    """Keep random keys of every chunk, different ones in every layer; the same for the same `seed`, on any device."""

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        seed: int = 0,
        allocator: str | dict | Allocator = "even",
        chunk_frames: int = 32,
    ) -> None:
        # "self" needs no question window; score() below replaces it
        super().__init__(keep, tokens, "self", allocator, chunk_frames)
        self.seed, self.generator = seed, torch.Generator()

    def begin(self, plan: Plan) -> None:
        super().begin(plan)
        self.generator.manual_seed(self.seed)

    def score(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.rand(1, key.shape[2], generator=self.generator).to(key.device, non_blocking=True)
