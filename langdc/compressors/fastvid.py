"""FastVID: cut the video where it changes; keep each still stretch once, as salient tokens and merged contexts.

Letters: T frames, F frames with centres, P = H*W places of a frame, C width, n centres.
Source: FastVID (arXiv 2503.11187), sections 3.2-3.4, and its release for Qwen models beside VidCom2's.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from langdc.compressors.base import Budget, SaliencyCompressor, Variant, best_of_each, compressors, frames_at_once
from langdc.compressors.clustering import distances, listed, mixed, peaks
from langdc.devices import at_once
from langdc.types import FeatureGrid, VideoTokens

NEIGHBOURS = 4


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
        centres = self._centres(values, salient, context_count.to(values.device))
        kept = (salient | centres).flatten()
        tokens = self.taken(grid, kept.nonzero()[:, 0])
        row = kept.cumsum(0) - 1
        for bounds, having in _batches(segment, context_count, values):
            place, mixtures = self._merge(values, bounds, salient, centres, having.to(values.device))
            tokens.values[row[place]] = mixtures.to(values.dtype)
        return tokens

    def cuts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Which segment, and which stretch (counted through the video), each frame belongs to: [T] twice."""
        means = [frames.float().mean(1) for frames in values.split(frames_at_once(values))]
        whole = functional.normalize(torch.cat(means), dim=-1)
        alike = (whole[:-1] * whole[1:]).sum(1).cpu()
        apart = alike < self.change
        apart[alike.topk(min(self.segments - 1, len(alike)), largest=False).indices] = True
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
        """Density peaks among what is not salient of each frame: [T,P]."""
        found = torch.zeros_like(salient)
        having, step = count.nonzero()[:, 0], frames_at_once(values)
        for start in range(0, len(having), step):
            some = having[start : start + step]
            among = ~salient[some]
            neighbours = among.sum(1).clamp(max=NEIGHBOURS)
            apart = distances(values[some])
            found[some] = peaks(apart, among, count[some], neighbours, as_topk=self.variant == "released")
        return found

    def _merge(
        self, values: Tensor, segment: tuple[int, int], salient: Tensor, centres: Tensor, frames: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Flat indices of the centres of `frames` [F] in values [T,P,C]: [n]; and what they are after merging: [n,C].
        Each token of the `segment` (first frame, end) is merged into the centre of each frame that it is most like.
        """
        places, width = values.shape[1:]
        place, real = listed(centres[frames])
        first = torch.arange(len(frames), device=values.device) * place.shape[1]  # slots of centres are numbered
        place = place + frames[:, None] * places
        tokens, free, central = values.flatten(0, 1), ~salient.flatten(), centres.flatten()
        own = tokens[place.flatten()].float()
        direction = functional.normalize(own, dim=-1).T
        slots = torch.arange(len(own) + 1, device=values.device)  # the last is for what is not merged
        total, count = torch.zeros_like(own), torch.zeros(len(own), device=values.device)
        step, end = at_once(4 * max(len(own), width), values.device), segment[1] * places
        for start in range(segment[0] * places, end, step):
            part = torch.arange(start, min(start + step, end), device=values.device)
            block = tokens[start : start + len(part)].float()
            alike = (functional.normalize(block, dim=-1) @ direction).unflatten(1, place.shape)
            best = alike.masked_fill_(~real, -torch.inf).argmax(-1)
            joins = free[part, None] & ~(central[part, None] & (part[:, None] // places == frames))
            slot = torch.where(joins, best + first, len(own))
            slot, order = slot.flatten().sort(stable=True)
            begins = torch.searchsorted(slot, slots)
            total += functional.embedding_bag(order // len(frames), block, begins, mode="sum")[:-1]
            count += begins.diff()
        share = (1 / (count + 1)).clamp(min=self.own)[:, None]
        return place[real], mixed(own, total, count, share).unflatten(0, place.shape)[real]


def _batches(segment: Tensor, count: Tensor, values: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Bounds of each segment, and frames [F] of it to process together: those with centres, `count` [T]."""
    step = at_once(4 * max(1, int(count.max())) * values.shape[2], values.device)
    lengths = torch.bincount(segment)
    ends = lengths.cumsum(0)
    for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True):
        having = start + count[start:end].nonzero()[:, 0]
        for some in having.split(step) if len(having) else ():
            yield (start, end), some


def _even(total: Tensor, parts: Tensor, of: Tensor, order: Tensor) -> Tensor:
    """Share of each stretch, the `order`-th of its segment's `parts`, in the segment's `total`; remainders go first."""
    each = total // parts
    return each[of] + (order < (total - each * parts)[of])
