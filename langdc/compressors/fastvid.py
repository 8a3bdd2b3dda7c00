"""FastVID: cut the video where it changes, keep each still stretch once: its salient tokens and merged contexts.

Letters: T frames, P = H*W places of a frame, C width, G segments, L frames of a segment, K centres.
Source: FastVID (arXiv 2503.11187), sections 3.2-3.4, and its release for Qwen models beside VidCom2's.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from langdc.compressors.base import Budget, SaliencyCompressor, best_of_each, compressors, frames_at_once
from langdc.compressors.clustering import distances, listed, mixed, peaks
from langdc.devices import at_once
from langdc.registry import check_choice
from langdc.types import FeatureGrid, VideoTokens

Variant = Literal["fixed", "released"]
NEIGHBOURS = 4


@compressors.register("fastvid")
class FastVID(SaliencyCompressor):
    """Cut where frames change; within a segment, only frames before a smaller change keep tokens.

    The `segments` - 1 largest changes are cuts, and every similarity of frames below `change`. Within a segment, a
    stretch whose frames are at least `still` alike is kept at its last frame. The part `context` of the kept tokens are
    density peaks of every `stride`-th stretch, counted from the end, that take in all tokens of the segment most like
    them, at least the part `own` staying their own; the others are the salient ones. Salience is the encoder's
    attention where the backbone gives it, else the length of a token, which the release takes always.
    `variant`: "released" rounds what a frame keeps down to a whole number; "fixed", the default, rounds only a
    segment's. The release's random tie-break is left out of both. Still videos keep less than the budget.
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
        check_choice("fastvid variant", variant, Variant)
        super().__init__(keep, tokens, variant, frames_per_segment)
        if segments < 1 or stride < 1 or not (0 <= context <= 1 and 0 <= own <= 1):
            raise ValueError(
                f"segments={segments} and stride={stride} must be at least 1, "
                f"context={context} and own={own} in [0, 1]."
            )
        self.segments, self.stride = segments, stride
        self.change, self.still, self.context, self.own = change, still, context, own

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        if budget.covers(grid.tokens):
            return self.taken(grid, torch.arange(grid.tokens, device=grid.values.device))
        values = grid.values.flatten(1, 2)
        segment, stretch = self.cuts(values)
        salient_count, context_count = self.plan(segment, stretch, values.shape[1], budget)
        score = self.token_saliency(grid)
        salient = best_of_each(score, salient_count.to(values.device))
        centres = self._centres(values, salient, context_count.to(values.device))
        kept = (salient | centres).flatten()
        tokens = self.taken(grid, kept.nonzero()[:, 0])
        row = kept.cumsum(0) - 1
        for bounds, having in _takers(segment, context_count, values):
            place, found = self._take_in(values, bounds, salient, centres, having.to(values.device))
            tokens.values[row[place]] = found.to(values.dtype)
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
        first = inside.cumsum(0) - inside
        order = torch.arange(len(of)) - first[of]
        salient = _even(kept - contexts, inside, of, order)
        back = inside[of] - 1 - order
        taking = back % self.stride == 0
        turn = back // self.stride
        centres = torch.where(taking, _even(contexts, -(-inside // self.stride), of, turn), 0)
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

    def _take_in(
        self, values: Tensor, segment: tuple[int, int], salient: Tensor, centres: Tensor, frames: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where the centres of `frames` [F] are in values [T,P,C]: [n]; what they are with what they took in: [n,C].

        Each took in, of the tokens of the `segment` (from a frame, to before another), those that it is most like of
        the centres of its frame.
        """
        places, width = values.shape[1:]
        place, real = listed(centres[frames])
        first = torch.arange(len(frames), device=values.device) * place.shape[1]  # slots of centres are numbered
        place = place + frames[:, None] * places
        tokens, free, central = values.flatten(0, 1), ~salient.flatten(), centres.flatten()
        own = tokens[place.flatten()].float()
        direction = functional.normalize(own, dim=-1).T
        slots = torch.arange(len(own) + 1, device=values.device)  # the last is for what no centre takes in
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
        found = mixed(own, total, count, share).unflatten(0, place.shape)
        return place[real], found[real]


def _bounds(segment: Tensor) -> list[tuple[int, int]]:
    """From which frame to before which other each segment goes; the segment of each of T frames given."""
    lengths = torch.bincount(segment)
    ends = lengths.cumsum(0)
    return list(zip((ends - lengths).tolist(), ends.tolist(), strict=True))


def _takers(segment: Tensor, count: Tensor, values: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Segments and which of their frames take in tokens at once, in turn; of [T,P,C] with `count` [T] centres each."""
    step = at_once(4 * max(1, int(count.max())) * values.shape[2], values.device)
    for start, end in _bounds(segment):
        having = start + count[start:end].nonzero()[:, 0]
        for some in having.split(step) if len(having) else ():
            yield (start, end), some


def _even(total: Tensor, parts: Tensor, of: Tensor, order: Tensor) -> Tensor:
    """What the `order`-th of a segment's `parts` gets of its `total`, the first ones one more: per stretch."""
    each = total // parts
    return each[of] + (order < (total - each * parts)[of])
