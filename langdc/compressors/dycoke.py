"""DyCoke's first stage: one frame of four is kept whole, the others keep what is new in them.

Letters: T frames, P = H*W places of a frame.
Source: DyCoke (arXiv 2411.15024), section 3.2, and its released code.
"""

import torch
from torch import Tensor

from langdc.compressors.base import Budget, Selector, Variant, compressors, cosine, spread_evenly
from langdc.types import FeatureGrid

GROUP = 4
BACK = {1: 1, 2: 2, 3: 1}
"""How many frames back each frame of a group is compared; the first is kept whole."""


@compressors.register("dycoke")
class DyCoke(Selector):
    """Keep every fourth frame whole; of the frames between, the tokens least like those before at the same place.

    The second and third frame of a group are compared with its first, the fourth with the third. A budget below one
    quarter is not met.
    `variant`: "released" reads `keep` as the share of the frames between alone, drops the last frame of an odd number,
    and leaves the third frame of the last group whole; `merging_ratio`, in place of a budget, is its name for 1 - keep.
    "fixed", the default, has none of that: `keep` counts all tokens.
    """

    nominal = True
    variants = Variant
    paper = "arXiv 2411.15024"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        merging_ratio: float | None = None,
        frames_per_segment: int = 4,
    ) -> None:
        if merging_ratio is not None and (variant != "released" or not 0 <= merging_ratio <= 1 or keep or tokens):
            raise ValueError(
                f"merging_ratio={merging_ratio} goes with variant='released', is in [0, 1] and stands in place of keep "
                "and tokens."
            )
        super().__init__(keep if merging_ratio is None else 1.0, tokens, frames_per_segment, variant)
        self.merging_ratio = merging_ratio

    def score(self, grid: FeatureGrid) -> Tensor:
        values = grid.values.flatten(1, 2)
        score = torch.zeros(values.shape[:2], device=values.device)
        for place, back in BACK.items():
            later = values[place::GROUP]
            score[place::GROUP] = 1 - cosine(later, values[place - back :: GROUP][: len(later)])
        return score

    def counts(self, grid: FeatureGrid, score: Tensor, budget: Budget) -> Tensor:
        frames, places = score.shape
        order = torch.arange(frames)  # on the CPU, so that nothing waits for the device
        whole = order % GROUP == 0
        if self.variant == "released":
            return self._released(order, whole, places, budget.share(grid.tokens))
        between = int((~whole).sum())
        left = max(0, budget.of(grid.tokens) - int(whole.sum()) * places)
        counts = torch.full_like(order, places)
        if between:
            counts[~whole] = spread_evenly(left, between, places, order.device)
        return counts

    def _released(self, order: Tensor, whole: Tensor, places: int, share: float) -> Tensor:
        frames = len(order)
        merging = 1 - share if self.merging_ratio is None else self.merging_ratio
        left_whole = (order % GROUP == 2) & (order - 2 >= frames - GROUP)
        counts = torch.where(whole | left_whole, places, int((1 - merging) * places))
        lost = (order == frames - 1) & (frames > 1 and frames % 2 == 1)
        return counts.masked_fill(lost, 0)
