"""SnapKV: the keys that the last tokens attend to, per key head. Letters: G key heads, L layers, n keys."""

import torch
from torch import Tensor
from torch.nn import functional

from langdc.kvcompressors.allocators import Allocator
from langdc.kvcompressors.base import BestKeysKV, kvcompressors
from langdc.kvcompressors.scorers import Scorer, WindowScorer
from langdc.types import Chunk


@kvcompressors.register("snapkv")
class SnapKV(BestKeysKV):
    """Keep, per key head, the keys of every chunk that its last `window` tokens (the observation window) attend to.

    SnapKV (arXiv 2404.14469), section 4, applied chunk by chunk: scores are averaged over `kernel` neighbouring tokens,
    so that neighbours are kept together, and the window itself stays (at most half of the budget). With
    scorer="question" the question takes the window's place. Query heads of one key head choose together.
    """

    paper = "arXiv 2404.14469"

    per_head = True

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        window: int = 32,
        kernel: int = 7,
        scorer: str | dict | Scorer | None = None,
        allocator: str | dict | Allocator = "even",
        chunk_frames: int = 32,
    ) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel={kernel}; neighbours on both sides need an odd number, such as 7.")
        super().__init__(keep, tokens, scorer or WindowScorer(window), allocator, chunk_frames)
        self.kernel = kernel

    def adjust(self, scores: Tensor, chunk: Chunk) -> Tensor:
        window = self.scorer.size if isinstance(self.scorer, WindowScorer) else 0
        window = min(window, self.count(self.chunk_share(chunk), scores.shape[-1]) // 2)
        came = scores > -torch.inf  # to the layer; others count for nothing, here and among their neighbours
        late = came & (came.flip(-1).cumsum(-1).flip(-1) <= window)
        rest = came & ~late
        smooth = self._pooled(scores.masked_fill(~rest, 0)) / self._pooled(rest.to(scores)).clamp(min=1e-9)
        return smooth.masked_fill(late, torch.inf).masked_fill(~came, -torch.inf)

    def _pooled(self, scores: Tensor) -> Tensor:
        return functional.avg_pool1d(scores, self.kernel, 1, self.kernel // 2, count_include_pad=False)
