"""FlashVID: tokens of each frame that are salient and far apart; the rest merges along time, then within frames.

Letters: T frames, P = H*W places of a frame, C width, S segments, B frames at once, K tokens selected of a frame.
Source: FlashVID (arXiv 2602.08024), section 3, and its released code.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from langdc.compressors.base import (
    Budget,
    GridCompressor,
    Variant,
    apportioned,
    compressors,
    frames_at_once,
    importance,
    spread_evenly,
)
from langdc.compressors.clustering import changes, thinned
from langdc.devices import at_once
from langdc.types import FeatureGrid, VideoTokens

NEIGHBOURS = 7


@compressors.register("flashvid")
class FlashVID(GridCompressor):
    """Select tokens of each frame; merge the others into trees through the frames of a segment, then into clusters.

    Cuts between segments are the `segments` - 1 largest changes and every similarity of frames below `change`. The
    fraction `selected` (alpha) of what a frame keeps is chosen one by one, each time the farthest from those before:
    one minus the cosine, times the encoder's attention to the new one (its length where there is none) and, with
    `events`, times its product with the mean of its segment. Of the others, those more than `alike` similar to one of
    the frame before join the most similar, the most similar first, while enough are left. A tree is its mean, at its
    first token. A frame's trees become density peaks, each the mean of those nearest to it.
    For Qwen2.5-VL and Qwen3-VL the release sets events=False and segments=4. It keeps 1.25 times the share asked for
    here, and by FastV's rule 0.3 of that from layer 20 of 28 on, a mean of 0.8: the whole method at the share R is this
    with keep = 1.25 R, and `layers: {name: fastv, keep: 0.8, layer: 20}`. On Qwen models, where a token is kept twice,
    it puts the same values in both places.
    `variant`: "released" rounds up in every frame, so that more is kept than asked; divides a tree's sum by one more
    than its first token's own children, so that deep trees grow long; merges none of several pairs equal to the last
    one allowed; clusters a lone frame's selected tokens again; has no more neighbours in a density than clusters, so
    that of one or two it says nothing; with `events` may select tokens twice, where products are negative. "fixed",
    the default, meets the budget and has none of that. The release's random tie-break is left out of both.
    """

    needs = frozenset({"projected", "saliency"})
    variants = Variant
    paper = "arXiv 2602.08024"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        segments: int = 8,
        change: float = 0.9,
        selected: float = 0.7,
        alike: float = 0.8,
        events: bool = True,
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment, variant)
        if segments < 1 or not (0 <= selected <= 1 and -1 <= alike <= 1):
            raise ValueError(
                f"segments={segments} must be at least 1, selected={selected} in [0, 1] and alike={alike} in [-1, 1]."
            )
        self.segments, self.change, self.selected = segments, change, selected
        self.alike, self.events = alike, events

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        if budget.covers(grid.tokens):
            return self.whole(grid)
        values, released = grid.values.flatten(1, 2), self.variant == "released"
        frames, places, device = *values.shape[:2], values.device
        means, _, apart = changes(values.detach(), self.segments, self.change)
        segment = pad(apart.long().cumsum(0), (1, 0))  # [T], on the CPU, as all counts
        of, lengths = segment.to(device, non_blocking=True), torch.bincount(segment)
        kept = spread_evenly(budget.of(grid.tokens), frames, places, segment.device)
        if released:
            kept = (torch.full_like(kept, places).double() * budget.share(grid.tokens)).ceil().long()
        chosen = (kept.double() * self.selected).ceil().long()
        index = self._farthest(values.detach(), importance(grid), of, means, int(chosen.max()))
        real = (torch.arange(index.shape[1]) < chosen[:, None]).to(device, non_blocking=True)
        taken = torch.zeros(frames, places, dtype=torch.bool, device=device).scatter_(1, index, real)
        allowed = lengths * places - torch.bincount(segment, kept).long()
        parent = root = self._parents(values.detach(), taken, of, lengths, allowed)
        for _ in range((frames - 1).bit_length()):  # to the first token of the tree; each turn goes twice as far
            root = root[root]
        ones, itself = torch.ones_like(root), torch.arange(len(root), device=device)
        size = torch.zeros_like(root).index_add_(0, parent if released else root, ones).clamp(min=1)
        among = (parent == itself).view(frames, places) & ~taken
        if released:  # a frame that is a segment
            among |= (lengths[segment] == 1)[:, None].to(device, non_blocking=True)
        of_frame = root.new_zeros(frames).index_add_(0, root // places, ones)
        of_frame, number = torch.stack([of_frame, among.sum(1)]).cpu()
        wanted, there = (torch.bincount(segment, n) for n in (kept - chosen, number))
        share = number * (wanted / there.clamp(min=1))[segment]
        counts = torch.minimum(share.ceil().long(), number)
        if not released:
            counts = apportioned(share, int(wanted.sum()), number)
        means_of = partial(_means, values, root.argsort(stable=True), root, size, of_frame)
        step = frames_at_once(values)
        centres, parts = thinned(means_of, among, counts, step, NEIGHBOURS, None, released, few=released)
        selected = (index + torch.arange(frames, device=device)[:, None] * places)[real]
        source, turn = torch.cat([selected, centres.flatten().nonzero()[:, 0]]).sort(stable=True)
        tokens, rows = self.taken(grid, source), turn.argsort()[len(selected) :]
        for part, at in zip(parts, rows.split([len(part) for part in parts]), strict=True):
            tokens.values[at] = part.to(tokens.values.dtype)
        return tokens

    @torch.no_grad()
    def _farthest(self, values: Tensor, weight: Tensor, of: Tensor, means: Tensor, most: int) -> Tensor:
        """The `most` tokens of each frame that are far apart, in the order of their choice: [T,K]. `weight` [T,P]; `of`
        [T]: the segment of each frame; `means` [T,C]: of frames.
        """
        fixed, found, step = self.variant == "fixed", [], frames_at_once(values)
        event = torch.zeros_like(means).index_add_(0, of, means)[of]  # a sum: lengths change no order in a frame
        for tokens, weights, events in zip(values.split(step), weight.split(step), event.split(step), strict=True):
            if self.events:
                product = (tokens.float() @ events[..., None])[..., 0]
                weights = weights * (product.clamp(min=0) if fixed else product)
            units, frame = normalize(tokens.float(), dim=-1), torch.arange(len(tokens), device=values.device)
            apart = (1 - units @ units.mT) * weights[:, None]  # of one that is kept (row) from a new one (column)
            left = apart.topk(min(2, apart.shape[1]), 1, largest=False).values[:, -1]
            chosen = torch.empty(len(tokens), most, dtype=torch.long, device=values.device)
            for turn in range(most):
                best = left.argmax(1)
                chosen[:, turn], row = best, apart[frame, best]
                left = torch.minimum(left, row) if turn else row
                if fixed or not self.events:
                    left = left.scatter(1, best[:, None], -torch.inf)
            found.append(chosen)
        return torch.cat(found)

    @torch.no_grad()
    def _parents(self, values: Tensor, taken: Tensor, of: Tensor, lengths: Tensor, allowed: Tensor) -> Tensor:
        """The flat index of the token that each one joins, of the frame before, or its own: [T*P]. `taken` [T,P]: those
        that neither join nor are joined; `of` [T]; `lengths` and `allowed` [S], on the CPU: how many frames a segment
        has, and how many of its tokens join at most.
        """
        frames, places = taken.shape
        alike, place = torch.full(taken.shape, -1.0, device=values.device), torch.zeros_like(taken, dtype=torch.long)
        for start in range(1, frames, step := frames_at_once(values)):
            units = normalize(values[start - 1 : start + step].float(), dim=-1)
            near = (units[1:] @ units[:-1].mT).masked_fill_(taken[start - 1 :][: len(units) - 1, None], -1.0)
            alike[start : start + step], place[start : start + step] = near.max(-1)
        first = of.diff(prepend=of[:1] - 1) > 0
        alike, of = alike.masked_fill_(taken | first[:, None], -1.0).flatten(), of.repeat_interleave(places)
        order = alike.argsort(descending=True, stable=True)
        order = order[of[order].argsort(stable=True)]  # segment by segment, the most similar first
        counts = torch.stack([(lengths.cumsum(0) - lengths) * places, allowed])
        starts, limit = counts.to(values.device, non_blocking=True)
        joins = alike > self.alike
        if self.variant == "released":
            over = torch.zeros_like(limit).index_add_(0, of, joins.long()) > limit
            joins &= (alike > alike[order[starts + (limit - 1).clamp(min=0)]][of]) | ~over[of]
        else:
            joins &= order.argsort() - starts[of] < limit[of]
        itself = torch.arange(frames * places, device=values.device)
        return torch.where(joins, itself - itself % places - places + place.flatten(), itself)


def _means(values: Tensor, order: Tensor, root: Tensor, size: Tensor, of_frame: Tensor, some: Tensor) -> Tensor:
    """Sums of the trees that begin in frames `some` [B] (ascending, on the CPU), divided by `size` [T*P]: [B,P,C] in
    float32. `order` [T*P]: tokens by the `root` of their tree; `of_frame` [T], on the CPU: how many have it in a frame.
    """
    places, width = values.shape[1:]
    total = torch.zeros(len(some) * places, width, device=values.device)
    slot = torch.arange(len(some)).repeat_interleave(of_frame[some])
    first = (of_frame.cumsum(0) - of_frame)[some] - (of_frame[some].cumsum(0) - of_frame[some])
    inside = torch.arange(len(slot)) + first[slot]
    for at in torch.arange(len(slot)).split(at_once(4 * width, values.device)):
        row, token = (part[at].to(values.device, non_blocking=True) for part in (slot, inside))
        token = order[token]
        total.index_add_(0, row * places + root[token] % places, values.flatten(0, 1)[token].float())
    some = some.to(values.device, non_blocking=True)
    return total.unflatten(0, (-1, places)) / size.view(-1, places, 1)[some]
