"""MA-LMM's memory bank: the two most similar neighbours in time become one, until few are left.

Letters: T frames, P = H*W places of a frame, C width.
Source: MA-LMM (arXiv 2404.05726), section 3.2; ReTaKe (2412.20504) compares with it.
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
    segment_of_frame,
    whole_frames,
)
from langdc.registry import check_choice
from langdc.types import FeatureGrid, VideoTokens


@compressors.register("ma_lmm")
class MALMM(GridCompressor):
    """Merge neighbours in time, the most similar pair first, as often as the budget asks.

    `per="patch"` merges each patch on its own, `per="frame"` whole frames by their mean similarity. `soft` averages the
    pair, weighted by the frames that each stands for; otherwise the later one replaces both.
    `variant`: "fixed", the default, rounds the budget down to whole frames; where it is less than one, all frames are
    merged, and the patches that matter most to the encoder are left. "released" leaves max(1, round(keep * frames))
    frames, as ReTaKe's release does, which may be more than the budget.
    """

    variants = Variant
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
        super().__init__(keep, tokens, frames_per_segment, variant)
        check_choice("ma_lmm per", per, Per)
        self.per, self.soft = per, soft

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        values = grid.values.flatten(1, 2).float()
        frames, places = values.shape[:2]
        bank = _Bank(values[:, None] if self.per == "frame" else values[:, :, None])
        wanted = budget.of(grid.tokens)
        for _ in range(frames - whole_frames(budget, frames, places, self.variant)):
            bank.merge(self.soft)
        alive = bank.alive[:-1].expand(frames, places)
        source = alive.flatten().nonzero()[:, 0]
        if wanted < places and self.variant == "fixed":  # one slot is left, that of the first frame
            source = best_places(importance(grid).mean(0), wanted)
        merged = bank.values.flatten(1, 2).flatten(0, 1)[source].to(grid.values.dtype)
        return VideoTokens(merged, segment_of_frame(grid.values, self.frames_per_segment)[source // places])


class _Bank:
    """Slots of T frames x n tracks x the patches that merge together; a merged slot's right neighbour is dead. A last
    slot stands for what is beyond both ends, so that no place need be left out.
    """

    def __init__(self, values: Tensor) -> None:
        self.frames, tracks = values.shape[:2]
        self.values = torch.cat([values, torch.zeros_like(values[:1])])
        self.size = values.new_ones(self.frames + 1, tracks)
        self.alive = torch.ones(self.frames + 1, tracks, dtype=torch.bool, device=values.device)
        order = torch.arange(self.frames + 1, device=values.device)[:, None].expand(-1, tracks)
        self.after, self.before = (order + 1).clamp(max=self.frames), order - 1
        self.like = torch.full((self.frames + 1, tracks), -torch.inf, device=values.device)
        flat = values.flatten(1, 2)
        self.like[: self.frames - 1] = cosine(flat[:-1], flat[1:]).unflatten(1, values.shape[1:3]).mean(-1)
        self.track = torch.arange(tracks, device=values.device)

    def merge(self, soft: bool) -> None:
        """One merge in every track."""
        left, track = self.like.argmax(0), self.track
        right = self.after[left, track]
        own, total = self.size[left, track], self.size[left, track] + self.size[right, track]
        share = (own / total if soft else torch.zeros_like(own))[:, None, None]
        self.values[left, track] = self.values[left, track] * share + self.values[right, track] * (1 - share)
        self.size[left, track] = total
        self.alive[right, track] = False
        self.like[right, track] = -torch.inf
        beyond = self.after[right, track]
        self.after[left, track] = beyond
        self.before[beyond, track] = left
        self._compare(left, track)
        self._compare(self.before[left, track], track)

    def _compare(self, left: Tensor, track: Tensor) -> None:
        """Similarity of a slot to its right neighbour, where it has one."""
        right = self.after[left, track]
        pair = self.values[left, track], self.values[right, track]
        there = (left >= 0) & (right < self.frames)
        self.like[left, track] = torch.where(there, F.cosine_similarity(*pair, dim=-1).mean(-1), -torch.inf)
