"""EVS: the first frame, and what differs most from the same place one frame before.

Letters: T frames, P = H*W places of a frame.
Source: Efficient Video Sampling (arXiv 2510.14624), and NVIDIA's code of it in vLLM.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from langdc.compressors.base import (
    Budget,
    GridCompressor,
    Variant,
    best_places,
    compressors,
    cosine,
    frames_at_once,
    vllm_share,
)
from langdc.types import FeatureGrid, VideoTokens


@compressors.register("evs")
class EVS(GridCompressor):
    """Keep the first frame whole, and of all later tokens those least like the one before at the same place.

    Frames have no budgets of their own: a still one keeps nothing. A budget below one frame is not met. The paper
    compares pixels; NVIDIA's code compares tokens, as here.
    `variant`: "released" keeps the very tokens that vLLM keeps at the pruning rate 1 - keep: it rounds as vLLM does and
    compares in the features' own type (in bfloat16 many tokens are equally new, and the earlier ones stay), with side
    features such as DeepStack's beside the tokens. "fixed", the default, compares the tokens alone, in float32.
    """

    nominal = True
    variants = Variant
    paper = "arXiv 2510.14624"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment, variant)

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        new = self.newness(grid)
        count = budget.of(grid.tokens)
        if self.variant == "released" and budget.tokens is None:
            count = int(grid.tokens * vllm_share(budget, grid.tokens))
        return self.taken(grid, best_places(new.flatten(), max(new.shape[1], count)))

    @torch.no_grad()
    def newness(self, grid: FeatureGrid) -> Tensor:
        """One minus the cosine of each token and the one before at its place, infinite in the first frame: [T,P]."""
        values, *sides = (each.flatten(1, 2) for each in (grid.values, *grid.extra))
        if self.variant == "fixed":
            return torch.cat([torch.full_like(values[:1, :, 0], torch.inf), 1 - cosine(values[1:], values[:-1])])
        new, step = torch.full_like(values[..., 0], torch.inf), frames_at_once(values)
        for start in range(1, len(values), step):
            part = torch.cat([each[start - 1 : start + step] for each in (values, *sides)], -1)
            new[start : start + step] = 1 - cosine_similarity(part[1:], part[:-1], dim=-1)
        return new
