"""DivPrune: tokens as far from each other as a greedy choice makes them.

Letters: T frames, P = H*W places of a frame, C width, B groups of n tokens (the video, or its frames), N tokens kept.
Source: DivPrune (arXiv 2503.02175), max-min diversity, and its released code.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from langdc.compressors.base import Budget, GridCompressor, Variant, compressors, spread_evenly
from langdc.devices import at_once
from langdc.registry import check_choice
from langdc.types import FeatureGrid, VideoTokens

Over = Literal["video", "frame"]
HELD = 4 * 2**30
"""Bytes of cosines that are held: up to 32,768 tokens of a video."""


@compressors.register("divprune")
class DivPrune(GridCompressor):
    """Keep the token farthest from its nearest, then again and again the one farthest from all that are kept.

    Distances are one minus cosines; `per`: among all tokens of a "video", or of each "frame" alone, which the release,
    for images, does not have. All cosines are held, `T*P x T*P`, as in the release: 2.5 GB of 128 x 196 tokens. Of
    longer videos they are computed again for each choice, so that N times the features are read in float32: each choice
    depends on the one before.
    `variant`: "released" rounds to the nearest number, and where only copies of kept tokens are left it keeps one of
    them again; "fixed", the default, does neither.
    """

    variants = Variant
    paper = "arXiv 2503.02175"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        per: Over = "video",
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment, variant)
        check_choice("divprune per", per, Over)
        self.per = per

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        if self.variant == "fixed" and budget.covers(grid.tokens):
            return self.whole(grid)
        values = grid.values.flatten(1, 2) if self.per == "frame" else grid.values.flatten(0, 2)[None]
        groups, size = values.shape[:2]
        total = budget.of(grid.tokens)
        if self.variant == "released":
            total = max(1, round(budget.share(grid.tokens) * grid.tokens))
        counts = spread_evenly(total, groups, size, torch.device("cpu"))[:, None]
        picks = self.picks(values, int(counts.max())) + torch.arange(groups, device=values.device)[:, None] * size
        taken = (torch.arange(picks.shape[1]) < counts).flatten().nonzero()[:, 0]
        return self.taken(grid, picks.flatten()[taken.to(values.device, non_blocking=True)].sort().values)

    @torch.no_grad()
    def picks(self, values: Tensor, count: int) -> Tensor:
        """The first `count` tokens that are chosen in each group of `values` [B,n,C], in their order: [B,count]."""
        unit = normalize(values.float(), dim=-1)
        group = torch.arange(len(unit), device=unit.device)
        picks = torch.empty(len(unit), count, dtype=torch.long, device=unit.device)
        alike = unit @ unit.mT if 4 * unit.shape[1] * unit.shape[:2].numel() <= HELD else None
        apart = _nearest(unit, alike)
        for step in range(count):
            pick = picks[:, step] = apart.argmax(1)
            away = 1 - (alike[group, pick] if alike is not None else (unit[group, pick, None] @ unit.mT)[:, 0])
            apart = torch.minimum(apart, away) if step else away
            if self.variant == "fixed":
                apart.scatter_(1, pick[:, None], -torch.inf)
        return picks


def _nearest(unit: Tensor, alike: Tensor | None) -> Tensor:
    """How far each unit vector [B,n,C] is from the nearest other of its group: [B,n]; `alike`: cosines [B,n,n]."""
    groups, size = unit.shape[:2]
    parts, step = [], at_once(4 * groups * size, unit.device)
    for start in range(0, size, step):
        some = slice(start, start + step)
        cosines = unit[:, some] @ unit.mT if alike is None else alike[:, some].clone()
        cosines.diagonal(start, 1, 2).fill_(-torch.inf)
        parts.append(1 - cosines.amax(2))
    return torch.cat(parts, 1)
