"""HoliTom outside the language model: what is still in a window is kept once, the rest is selected by frame.

Letters: T frames, P = H*W places of a frame, C width, W windows, B groups (frames or windows), n tokens.
Source: HoliTom (arXiv 2505.21334), sections 3.2-3.3, and its release for Qwen models beside VidCom2's.
"""

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from langdc.compressors.base import (
    Budget,
    SaliencyCompressor,
    Variant,
    apportioned,
    best_of_each,
    compressors,
    cosine,
    frames_at_once,
)
from langdc.compressors.clustering import thinned
from langdc.types import FeatureGrid, VideoTokens


@compressors.register("holitom_outer")
class HoliTomOuter(SaliencyCompressor):
    """Cut the video into windows that have the most still patches; keep those once per window, as their mean.

    A patch is still while its similarity to the one before is above `still`; a window has at most `max_window` frames.
    The rest is cut to the budget: of still patches, density peaks (from `neighbours`) mixed with the others, with the
    weight `own` for themselves; of a frame's other tokens the salient ones and, as the fraction `context`, density
    peaks. The part of the method that works inside the language model is left out.
    `variant`: "released" rounds up in every frame, so that more is kept than asked, and gives evenly spread positions
    to what it kept; "fixed", the default, meets the budget with true positions, in their order. The release's random
    tie-break is left out of both.
    """

    paper = "arXiv 2505.21334"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        still: float = 0.8,
        own: float = 0.6,
        context: float = 0.0,
        neighbours: int = 7,
        max_window: int = 1024,
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment, variant)
        if max_window < 1 or neighbours < 1 or not (0 <= own <= 1 and 0 <= context <= 1):
            raise ValueError(
                f"max_window={max_window} and neighbours={neighbours} must be at least 1, own={own} and "
                f"context={context} in [0, 1]."
            )
        self.still, self.own, self.context = still, own, context
        self.neighbours, self.max_window = neighbours, max_window

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        if self.variant == "fixed" and budget.covers(grid.tokens):
            return self.whole(grid)
        values = grid.values.flatten(1, 2)
        window, still = self.windows(values)
        sizes = torch.cat([still.sum(1), (~still).sum(1)[window]]).cpu()
        counts = self._counts(sizes, len(still), budget, grid.tokens)  # on the CPU, as what follows from them
        step, lengths = frames_at_once(values), torch.bincount(window.cpu())
        peaked = partial(
            thinned, step=step, neighbours=self.neighbours, share=self.own, as_topk=self.variant == "released"
        )
        once, means = peaked(lambda some: _means(values, some, lengths), still, counts[: len(still)])
        score = self.token_saliency(grid)
        among, count = ~still[window], counts[len(still) :]
        salient = (count.double() * (1 - self.context)).round().long()
        dominant = best_of_each(score.masked_fill(~among, -torch.inf), salient)
        centres, mixed = peaked(lambda some: values[some], among & ~dominant, count - salient)
        return self._tokens(grid, window, (dominant, centres, once), [*mixed, *means])

    def windows(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Which window each frame belongs to [T], and which places are still in each [W,P]."""
        alike = cosine(values[:-1], values[1:]) > self.still
        ends = _best_ends(_run_ends(alike), self.max_window)
        window = torch.zeros(len(values), dtype=torch.long)
        window[torch.tensor(ends[:-1], dtype=torch.long) + 1] = 1
        window = window.cumsum(0).to(values.device)
        inside = window[1:] == window[:-1]  # a step that leaves a window does not count
        moves = torch.zeros(len(ends), values.shape[1], device=values.device)
        moves.index_add_(0, window[1:][inside], (~alike[inside]).float())
        longer = torch.bincount(window) > 1
        return window, (moves == 0) & longer[:, None]

    def _counts(self, sizes: Tensor, windows: int, budget: Budget, total: int) -> Tensor:
        """How many of each window's still patches, then of each frame's other tokens, are kept: [W+T]."""
        if self.variant == "fixed":
            wanted = min(budget.of(total), int(sizes.sum()))
            return apportioned(sizes.double() * wanted / sizes.sum(), wanted, sizes)
        share = min(budget.share(total) / (int(sizes.sum()) / total), 1.0)
        rounded = [(round if i < windows else math.ceil)(n * share) for i, n in enumerate(sizes.tolist())]
        return torch.tensor(rounded)

    def _tokens(
        self, grid: FeatureGrid, window: Tensor, masks: tuple[Tensor, Tensor, Tensor], merged: list[Tensor]
    ) -> VideoTokens:
        """Tokens by position; as released by windows, frames and masks. `masks`: salient tokens [T,P], density peaks
        [T,P], and what is still in windows [W,P]; `merged`: values of the latter two, in parts.
        """
        dominant, centres, once = masks
        frames, places = dominant.shape
        first = torch.searchsorted(window, torch.arange(len(once), device=window.device))
        parts = []  # for each mask: flat indices, and ranks in the order of the release
        for number, mask in enumerate((dominant, centres)):
            frame, place = mask.nonzero().unbind(1)
            parts.append((frame * places + place, ((2 * window[frame] + 1) * frames + frame) * 2 + number))
        of, place = once.nonzero().unbind(1)
        parts.append((first[of] * places + place, 4 * of * frames))
        source, turn = (torch.cat(column) for column in zip(*parts, strict=True))
        order = (source if self.variant == "fixed" else turn * places + source % places).argsort()
        tokens = self.taken(grid, source[order])
        rows = order.argsort()[len(parts[0][0]) :]
        for part, at in zip(merged, rows.split([len(part) for part in merged]), strict=True):
            tokens.values[at] = part.to(tokens.values.dtype)
        if self.variant == "fixed":
            return tokens
        spread = torch.linspace(0, frames * places - 1, len(source), dtype=torch.long, device=source.device)
        return self.with_values(self.taken(grid, spread), tokens.values)


def _means(values: Tensor, some: Tensor, lengths: Tensor) -> Tensor:
    """Mean of the frames [T,P,C] of each window of `some` [w] (ascending, on the CPU as the windows' `lengths`):
    [w,P,C] in float32.
    """
    total = torch.zeros(len(some), *values.shape[1:], device=values.device)
    place = torch.arange(len(some)).repeat_interleave(lengths[some])
    first = (lengths.cumsum(0) - lengths)[some] - (lengths[some].cumsum(0) - lengths[some])
    inside = torch.arange(len(place)) + first[place]
    for at in torch.arange(len(place)).split(frames_at_once(values)):
        slot, frames = (part[at].to(values.device, non_blocking=True) for part in (place, inside))
        total.index_add_(0, slot, values[frames].float())
    return total / lengths[some, None, None].to(values.device, non_blocking=True)


def _run_ends(alike: Tensor) -> Tensor:
    """For each frame and patch, the last frame that is reached without a change: [T,P], from `alike` [T-1,P]."""
    steps = len(alike)
    order = torch.arange(steps, device=alike.device)[:, None].expand_as(alike)
    stops = torch.where(alike, steps, order)
    ends = torch.cat([stops, stops.new_full((1, alike.shape[1]), steps)])
    return ends.flip(0).cummin(0).values.flip(0)


def _best_ends(run_ends: Tensor, max_frames: int) -> list[int]:
    """The last frames of the windows that save the most tokens, by dynamic programming over frames, on the CPU."""
    frames = len(run_ends)
    start = torch.arange(frames, device=run_ends.device)[:, None]
    reached = torch.bincount((start * frames + run_ends).flatten(), minlength=frames**2).unflatten(0, (-1, frames))
    still = reached.flip(1).cumsum(1).flip(1).cpu().numpy()  # patches still from a frame (row) to another (column)
    best, begin = np.zeros(frames + 1), np.zeros(frames, dtype=int)
    for end in range(frames):
        starts = np.arange(end, max(-1, end - max_frames), -1)  # of equal windows the shortest wins
        saved = best[starts] + still[starts, end] * (end - starts)
        choice = int(saved.argmax())
        best[end + 1], begin[end] = saved[choice], starts[choice]
    ends, end = [], frames - 1
    while end >= 0:
        ends.append(end)
        end = int(begin[end]) - 1
    return ends[::-1]
