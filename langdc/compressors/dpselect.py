"""DPSelect: keep the frames, or of each patch the times, at which the features change most.

Letters: T frames, P = H*W places of a frame, C width, n series, N tokens kept.
Source: ReTaKe (arXiv 2412.20504), section 3.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from langdc.compressors.base import (
    Budget,
    GridCompressor,
    Per,
    Variant,
    best_places,
    compressors,
    cosine,
    importance,
    whole_frames,
)
from langdc.registry import check_choice
from langdc.types import FeatureGrid, VideoTokens


@compressors.register("dpselect")
class DPSelect(GridCompressor):
    """Keep what differs from the frame before; local peaks of that difference first, then the largest of the rest.

    `per="frame"` keeps whole frames by their mean difference; `per="patch"` lets each patch keep frames of its own. The
    peaks become anchors, which PivotKV never evicts; with keep=1 nothing else is done, as in ReTaKe. `window`: how many
    frames a peak must exceed, centred on it. The first frame counts as different.
    `variant`: "fixed", the default, rounds the budget down to whole frames; where it is less than one, what one frame
    would keep is cut down to the tokens that matter most to the encoder. "released" keeps max(1, round(keep * frames))
    frames, as the released code does, which may be more than the budget.
    """

    variants = Variant
    paper = "ReTaKe, arXiv 2412.20504"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        per: Per = "frame",
        window: int = 3,
        variant: Variant = "fixed",
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment, variant)
        check_choice("dpselect per", per, Per)
        if window < 1:
            raise ValueError(f"dpselect window {window}; a peak must top at least itself: 1 or more frames.")
        self.per, self.window = per, window

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        values = grid.values.flatten(1, 2)
        frames, places = values.shape[:2]
        change = self.change(values)
        # local maxima within centred windows; even ones reach one frame further back
        best = F.max_pool1d_with_indices(change.T[None], [self.window], stride=[1], padding=[self.window // 2])[1]
        peaks = torch.arange(frames, device=change.device)[:, None] == best[0, :, :frames].T
        wanted = budget.of(grid.tokens)
        count = whole_frames(budget, frames, places, self.variant)
        kept = (change + 2 * peaks).topk(count, dim=0).indices  # a difference is at most 2: peaks come first
        chosen = torch.zeros_like(peaks).scatter(0, kept, True).expand(frames, places)
        source = chosen.flatten().nonzero()[:, 0]
        if wanted < places and self.variant == "fixed":
            source = source[best_places(importance(grid).flatten()[source], wanted)]
        return self.taken(grid, source, anchor=peaks.expand(frames, places).flatten()[source])

    def change(self, values: Tensor) -> Tensor:
        """One minus the cosine to the frame before, of every place or as their mean: [T,P] or [T,1]; the first is 1."""
        change = values.new_ones(values.shape[:2], dtype=torch.float32)
        change[1:] = 1 - cosine(values[:-1], values[1:])
        return change if self.per == "patch" else change.mean(1, keepdim=True)
