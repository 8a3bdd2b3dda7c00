"""VisionZip: of each frame the salient tokens, and a few merged ones for the rest.

Letters: T frames, P = H*W places of a frame, C width.
Source: VisionZip (arXiv 2412.04467), section 3, and its release for Qwen models beside VidCom2's.
"""

import torch
from torch import Tensor

from langdc.compressors.base import (
    Budget,
    SaliencyCompressor,
    Variant,
    best_of_each,
    compressors,
    frames_at_once,
    spread_evenly,
)
from langdc.compressors.clustering import listed, mixed, sums
from langdc.types import FeatureGrid, VideoTokens


@compressors.register("visionzip")
class VisionZip(SaliencyCompressor):
    """Keep each frame's salient tokens; merge the rest into the tokens of highest density.

    `dominant`: the salient fraction of what is kept. The other kept tokens are those with the highest mean similarity
    to their `neighbours` nearest; each becomes the mean of all that are most similar to it.
    `variant`: "released" keeps a whole number of tokens per frame, rounded down; "fixed", the default, gives what that
    leaves of the budget to salient tokens.
    """

    paper = "arXiv 2412.04467"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        dominant: float = 0.6,
        neighbours: int = 5,
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment, variant)
        if not 0 < dominant <= 1 or neighbours < 1:
            raise ValueError(f"dominant={dominant} must be in (0, 1] and neighbours={neighbours} at least 1.")
        self.dominant, self.neighbours = dominant, neighbours

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        if self.variant == "fixed" and budget.covers(grid.tokens):
            return self.whole(grid)
        values = grid.values.flatten(1, 2)
        frames, places = values.shape[:2]
        salient, others = self._counts(budget, frames, places, values.device)
        dominant = best_of_each(self.token_saliency(grid), salient)
        if others == 0:
            return self.taken(grid, dominant.flatten().nonzero()[:, 0])
        step = frames_at_once(values)
        blocks = list(zip(values.split(step), dominant.split(step), strict=True))
        found = [_contexts(*block, others, self.neighbours) for block in blocks]
        centres = torch.cat([chosen for chosen, _ in found])
        kept = dominant | centres
        tokens = self.taken(grid, kept.flatten().nonzero()[:, 0])
        rows = centres[kept].nonzero().view(frames, others).split(step)
        for (block, taken), (chosen, nearest), row in zip(blocks, found, rows, strict=True):
            place = listed(chosen, others)
            total, number = sums(block, place, nearest, ~taken)
            tokens.values[row] = mixed(tokens.values[row].float(), total, number, 0.0).to(values.dtype)
        return tokens

    def _counts(self, budget: Budget, frames: int, places: int, device: torch.device) -> tuple[Tensor, int]:
        """Salient tokens of each frame [T], and how many others each keeps."""
        total = budget.of(frames * places)
        if self.variant == "released":
            total = max(1, int(places * budget.share(frames * places))) * frames
        each = total // frames
        salient = min(each, max(1, int(each * self.dominant)))
        return salient + spread_evenly(total - each * frames, frames, places, device), each - salient


def _contexts(values: Tensor, dominant: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """The `count` densest of the other tokens of frames [t,P,C], as a mask [t,P]; and the nearest of them: [t,P]."""
    values = values.float()
    size = values.norm(dim=-1).clamp_min(1e-12)
    alike = (values @ values.mT).div_(size[:, :, None] * size[:, None])  # symmetric
    others = alike.masked_fill(dominant[:, None, :], -torch.inf)
    near = others.topk(min(neighbours + 1, others.shape[-1]), dim=-1).values[..., 1:]  # the first is itself
    real = near.isfinite()  # frames with one salient token more have one neighbour less
    density = near.where(real, 0.0).sum(-1) / real.sum(-1).clamp(min=1)
    wanted = torch.full((len(values),), count, device=values.device)
    centres = best_of_each(density.masked_fill(dominant, -torch.inf), wanted)
    return centres, alike.masked_fill_(~centres[:, None, :], -torch.inf).argmax(-1)
