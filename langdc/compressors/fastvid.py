"""FastVID: cut the video where it changes; keep each still stretch once, as salient tokens and merged contexts.

Letters: T frames, F frames with centres, P = H*W places of a frame, C width, B segments, n centres.
Source: FastVID (arXiv 2503.11187), sections 3.2-3.4, and its release for Qwen models beside VidCom2's.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from langdc.compressors.base import Budget, SaliencyCompressor, Variant, best_of_each, compressors, frames_at_once
from langdc.compressors.clustering import changes, distances, listed, mixed, peaks
from langdc.devices import at_once
from langdc.types import FeatureGrid, VideoTokens

NEIGHBOURS = 4


class _Segments(NamedTuple):
    """B segments of `length` frames: their `first` frames [B]; those of their `frames` that have centres [B,F], filled
    up with others, and the `count` of these centres [B,F]. On the CPU.
    """

    first: Tensor
    frames: Tensor
    count: Tensor
    length: int


@compressors.register("fastvid")
class FastVID(SaliencyCompressor):
    """Cut where frames change; within a segment, only frames before a smaller change keep tokens.

    Cuts are the `segments` - 1 largest changes (DySeg's c) and every similarity of frames below `change` (tau). Within
    a segment, a stretch whose frames are at least `still` similar is kept at its last frame. The fraction `context` of
    the kept tokens are density peaks of every `stride`-th stretch (DTM's p), counted from the end; they are mixed with
    the mean of the segment's tokens most similar to them, with a weight of at least `own` for themselves. The others
    are the salient tokens. Still videos keep less than the budget.
    `variant`: "released" rounds what a frame keeps down to a whole number; "fixed", the default, rounds only a
    segment's. The release's random tie-break is left out of both.
    """

    nominal = True
    paper = "arXiv 2503.11187"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        segments: int = 8,
        change: float = 0.84,
        still: float = 0.99,
        context: float = 0.5,
        stride: int = 4,
        own: float = 0.5,
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment, variant)
        if segments < 1 or stride < 1 or not (0 <= context <= 1 and 0 <= own <= 1):
            raise ValueError(
                f"segments={segments} and stride={stride} must be at least 1, "
                f"context={context} and own={own} in [0, 1]."
            )
        self.segments, self.stride = segments, stride
        self.change, self.still, self.context, self.own = change, still, context, own

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        if budget.covers(grid.tokens):
            return self.whole(grid)
        values = grid.values.flatten(1, 2)
        segment, stretch = self.cuts(values)
        salient_count, context_count = self.plan(segment, stretch, values.shape[1], budget)
        score = self.token_saliency(grid)
        salient = best_of_each(score, salient_count.to(values.device))
        centres = self._centres(values, salient, context_count)
        kept = (salient | centres).flatten()
        tokens = self.taken(grid, kept.nonzero()[:, 0])
        row = kept.cumsum(0) - 1
        for group in _groups(segment, context_count, values):
            place, mixtures = self._merge(values, group, salient, centres)
            tokens.values[row[place]] = mixtures.to(values.dtype)
        return tokens

    def cuts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Which segment, and which stretch (counted through the video), each frame belongs to: [T] twice."""
        _, alike, apart = changes(values, self.segments, self.change)
        parted = apart | (alike < self.still)
        return tuple(functional.pad(cut.long().cumsum(0), (1, 0)) for cut in (apart, parted))  # pyright: ignore[reportReturnType]

    def plan(self, segment: Tensor, stretch: Tensor, places: int, budget: Budget) -> tuple[Tensor, Tensor]:
        """How many salient tokens and how many centres each frame keeps: [T] twice."""
        frames = len(segment)
        lengths = torch.bincount(segment)
        kept = self._kept(lengths, places, budget, frames)
        contexts = torch.where(kept > 1, (kept * self.context).long().clamp(min=1), 0)
        last = torch.cat([stretch[1:] != stretch[:-1], torch.ones(1, dtype=torch.bool)])
        of = segment[last]  # the segment of each stretch
        inside = torch.bincount(of, minlength=len(lengths))  # stretches of each segment
        order = torch.arange(len(of)) - (inside.cumsum(0) - inside)[of]
        salient = _even(kept - contexts, inside, of, order)
        back = inside[of] - 1 - order
        even = _even(contexts, -(-inside // self.stride), of, back // self.stride)
        centres = torch.where(back % self.stride == 0, even, 0)
        alone = lengths[of] == 1
        centres = torch.where(alone, centres, centres.clamp(max=places // 2))
        salient = torch.minimum(salient, torch.where(alone, torch.full_like(centres, places), places - centres))
        centres = torch.minimum(centres, places - salient)
        spread = torch.zeros(2, frames, dtype=torch.long)
        spread[0, last], spread[1, last] = salient, centres
        return spread[0], spread[1]

    def _kept(self, lengths: Tensor, places: int, budget: Budget, frames: int) -> Tensor:
        if self.variant == "released":
            return lengths * min(places, max(1, int(places * budget.share(frames * places))))
        ends = lengths.cumsum(0) * budget.of(frames * places) // frames  # what is kept up to the end of each segment
        return ends.diff(prepend=torch.zeros(1, dtype=torch.long))

    def _centres(self, values: Tensor, salient: Tensor, count: Tensor) -> Tensor:
        """Density peaks among what is not salient of each frame, `count` [T] (on the CPU): [T,P]."""
        found = torch.zeros_like(salient)
        having = count.nonzero()[:, 0]
        for some in having.split(frames_at_once(values)) if len(having) else ():
            wanted, some = count[some].to(values.device, non_blocking=True), some.to(values.device, non_blocking=True)
            among = ~salient[some]
            neighbours = among.sum(1).clamp(max=NEIGHBOURS)
            apart, released = distances(values[some]), self.variant == "released"
            found[some] = peaks(apart, among, wanted, neighbours, NEIGHBOURS, as_topk=released)
        return found

    def _merge(self, values: Tensor, group: _Segments, salient: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Flat indices of a group's centres in values [T,P,C]: [n]; and what they are after merging: [n,C]. Each token
        of a segment is merged into the centre of each of its frames that it is most like.
        """
        places, width = values.shape[1:]
        first, frames, count = (part.to(values.device, non_blocking=True) for part in group[:3])
        most = int(group.count.max())
        place = listed(centres[frames.flatten()], most).unflatten(0, frames.shape) + frames[..., None] * places
        real = torch.arange(most, device=values.device) < count[..., None]
        tokens, free, central = values.flatten(0, 1), ~salient.flatten(), centres.flatten()
        own = tokens[place].float()
        direction = functional.normalize(own, dim=-1).flatten(1, 2).mT
        own = own.flatten(0, 2)
        slots = torch.arange(len(own) + 1, device=values.device)  # of centres; the last is for what is not merged
        begin = slots[:-1:most].view(frames.shape)
        total, number = torch.zeros_like(own), torch.zeros(len(own), device=values.device)
        step, end = at_once(4 * len(first) * max(real[0].numel(), width), values.device), group.length * places
        for start in range(0, end, step):
            part = first[:, None] * places + torch.arange(start, min(start + step, end), device=values.device)
            block = tokens[part].float()
            alike = (functional.normalize(block, dim=-1) @ direction).unflatten(2, real.shape[1:])
            best = alike.masked_fill_(~real[:, None], -torch.inf).argmax(-1)
            itself = central[part][..., None] & (part[..., None] // places == frames[:, None])
            joins = free[part][..., None] & (count > 0)[:, None] & ~itself
            slot = torch.where(joins, best + begin[:, None], len(own))
            slot, order = slot.flatten().sort(stable=True)
            begins = torch.searchsorted(slot, slots)
            total += functional.embedding_bag(order // frames.shape[1], block.flatten(0, 1), begins, mode="sum")[:-1]
            number += begins.diff()
        share = (1 / (number + 1)).clamp(min=self.own)[:, None]
        filled = (torch.arange(most) < group.count[..., None]).flatten().nonzero()[:, 0]
        filled = filled.to(values.device, non_blocking=True)
        return place.flatten()[filled], mixed(own, total, number, share)[filled]


def _groups(segment: Tensor, count: Tensor, values: Tensor) -> Iterator[_Segments]:
    """Segments of the same length, as many as fit; of a long one with some of its frames that have centres."""
    lengths = torch.bincount(segment)
    starts = lengths.cumsum(0) - lengths
    having = torch.zeros_like(lengths).index_add_(0, segment, (count > 0).long())
    each = 4 * values.shape[2] * max(1, int(count.max()))
    for length in lengths[having > 0].unique().tolist():
        alike = ((lengths == length) & (having > 0)).nonzero()[:, 0]
        most = int(having[alike].max())
        for some in alike.split(at_once(max(each * most, 4 * length * values[0].numel()), values.device)):
            frames = starts[some, None] + torch.arange(length)
            order = (count[frames] > 0).long().argsort(dim=1, descending=True, stable=True)[:, :most]
            for part in order.split(at_once(each * len(some), values.device), 1):
                chosen = frames.gather(1, part)
                yield _Segments(starts[some], chosen, count[chosen], length)


def _even(total: Tensor, parts: Tensor, of: Tensor, order: Tensor) -> Tensor:
    """Share of each stretch, the `order`-th of its segment's `parts`, in the segment's `total`; remainders go first."""
    each = total // parts
    return each[of] + (order < (total - each * parts)[of])
