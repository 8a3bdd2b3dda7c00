"""MA-LMM's memory bank: the two most similar neighbours in time become one, until few are left.

Letters: T frames, P = H*W places of a frame, C width.
Source: MA-LMM (arXiv 2404.05726), section 3.2; ReTaKe (arXiv 2412.20504) compares with it.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from langdc.compressors.base import Budget, GridCompressor, best_places, compressors, cosine, importance, whole_frames
from langdc.registry import check_choice
from langdc.types import FeatureGrid, VideoTokens

Per = Literal["frame", "patch"]
Variant = Literal["fixed", "released"]


@compressors.register("ma_lmm")
class MALMM(GridCompressor):
    """Merge neighbours in time, the most similar pair first, as often as the budget asks.

    `per="patch"` merges each place on its own, `per="frame"` whole frames by their mean similarity. `soft` averages the
    pair, weighted by how many frames each stands for; else the later one replaces both. One merge follows another; all
    places make theirs at once.
    `variant`: "fixed", the default, rounds the budget down to whole frames; where it is less than one, all frames are
    merged, and the places that matter most to the encoder, over all frames, are left. "released" leaves
    max(1, round(keep * frames)) frames, as ReTaKe's release does, which may be more than the budget.
    """

    paper = "arXiv 2404.05726"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        per: Per = "patch",
        soft: bool = True,
        variant: Variant = "fixed",
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment)
        check_choice("ma_lmm per", per, Per)
        check_choice("ma_lmm variant", variant, Variant)
        self.per, self.variant = per, variant
        self.soft = soft

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        values = grid.values.flatten(1, 2).float()
        frames, places = values.shape[:2]
        # per frame, its places share one fate
        values = values[:, None] if self.per == "frame" else values[:, :, None]
        bank = _Bank(values)
        wanted = budget.of(grid.tokens)
        for _ in range(frames - whole_frames(budget, frames, places, self.variant)):
            bank.merge(self.soft)
        alive = bank.alive.expand(frames, places)
        source = alive.flatten().nonzero()[:, 0]
        if wanted < places and self.variant == "fixed":  # one slot is left, that of the first frame
            source = best_places(importance(grid).mean(0), wanted)
        merged = bank.values.flatten(1, 2).flatten(0, 1)[source].to(grid.values.dtype)
        return VideoTokens(merged, self.frames(grid)[source // places])


class _Bank:
    """Slots of T frames x n fates x the places that share one; a merged slot's right neighbour is no longer alive."""

    def __init__(self, values: Tensor) -> None:
        frames, fates = values.shape[:2]
        self.values = values.clone()
        self.size = values.new_ones(frames, fates)
        self.alive = torch.ones(frames, fates, dtype=torch.bool, device=values.device)
        order = torch.arange(frames, device=values.device)[:, None].expand(frames, fates)
        self.after, self.before = (order + 1).clone(), (order - 1).clone()
        self.like = torch.full((frames, fates), -torch.inf, device=values.device)
        flat = values.flatten(1, 2)
        self.like[:-1] = cosine(flat[:-1], flat[1:]).unflatten(1, values.shape[1:3]).mean(-1)
        self.fate = torch.arange(fates, device=values.device)

    def merge(self, soft: bool) -> None:
        """One merge of every fate."""
        left, fate = self.like.argmax(0), self.fate
        right = self.after[left, fate]
        weight = self.size[left, fate], self.size[right, fate]
        if soft:
            share = (weight[0] / (weight[0] + weight[1]))[:, None, None]
            self.values[left, fate] = self.values[left, fate] * share + self.values[right, fate] * (1 - share)
        else:
            self.values[left, fate] = self.values[right, fate]
        self.size[left, fate] = weight[0] + weight[1]
        self.alive[right, fate] = False
        self.like[right, fate] = -torch.inf
        beyond = self.after[right, fate]
        self.after[left, fate] = beyond
        inside = beyond < len(self.values)
        self.before[beyond[inside], fate[inside]] = left[inside]
        self._compare(left, fate)
        self._compare(self.before[left, fate], fate)

    def _compare(self, left: Tensor, fate: Tensor) -> None:
        """How like its right neighbour a slot is, where it has one."""
        there = left >= 0
        left, fate = left[there], fate[there]
        right = self.after[left, fate]
        inside = right < len(self.values)
        self.like[left[~inside], fate[~inside]] = -torch.inf
        left, right, fate = left[inside], right[inside], fate[inside]
        pair = self.values[left, fate], self.values[right, fate]
        self.like[left, fate] = F.cosine_similarity(*pair, dim=-1).mean(-1)
