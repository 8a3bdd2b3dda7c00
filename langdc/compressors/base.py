"""The zoo of token compressors and what its members share.

Letters: T frames, H W patch grid, P = H*W, N tokens kept.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from langdc.budget import Budget, check_budget
from langdc.devices import at_once
from langdc.interfaces import TokenCompressor
from langdc.registry import Registry
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens

__all__ = ["Budget", "check_budget", "compressors", "segment_of_frame"]

compressors: Registry[TokenCompressor] = Registry("compressor", TokenCompressor)


def segment_of_frame(frames: int, frames_per_segment: int, device: torch.device) -> Tensor:
    """Which segment each of T frames belongs to: [T]."""
    return torch.arange(frames, device=device) // frames_per_segment


def best_of_each(score: Tensor, count: Tensor) -> Tensor:
    """The `count` [T] highest scores of every row of `score` [T,P] as a mask [T,P]; of equals, the earlier wins."""
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < count.to(rank.device)[:, None]


def best_places(score: Tensor, count: int) -> Tensor:
    """Where the `count` highest scores of a row [n] are, ascending; of equals, the earlier wins."""
    return score.argsort(descending=True, stable=True)[:count].sort().values


def middles(length: int, parts: int, device: torch.device) -> Tensor:
    """The index in the middle of each of `parts` equal parts of a row: [parts]."""
    return (torch.arange(parts, device=device) * 2 + 1) * length // (2 * parts)


def spread_evenly(total: int, rows: int, most: int, device: torch.device) -> Tensor:
    """`total` places over `rows` rows of at most `most`, as even as whole numbers go: [rows]."""
    at_least, rest = divmod(min(total, rows * most), rows)
    ends = torch.arange(1, rows + 1, device=device) * rest // rows
    return at_least + ends.diff(prepend=ends.new_zeros(1))


def whole_frames(budget: Budget, frames: int, places: int, variant: str) -> int:
    """How many of T frames of P tokens a budget keeps, at least one: rounded down; for `variant` "released" rounded to
    the nearest, as in ReTaKe's release.
    """
    if variant == "released":
        return max(1, round(budget.share(frames * places) * frames))
    return max(1, budget.of(frames * places) // places)


def apportioned(wanted: Tensor, total: int, most: Tensor) -> Tensor:
    """Whole numbers near `wanted` [n], at most `most` [n], that add up to `total`; the largest remainders go first."""
    floor = torch.minimum(wanted.floor(), most.to(wanted.dtype))
    missing = total - int(floor.sum())
    order = (wanted - floor).argsort(descending=True, stable=True)
    while missing > 0:
        open_to = order[(floor[order] < most[order])][:missing]
        floor[open_to] += 1
        missing -= len(open_to)
    return floor.long()


@torch.no_grad()
def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of tokens [n,P,C] at the same places: [n,P] in float32, the very numbers of torch's, in little memory; to
    decide by, without gradients.
    """
    step = at_once(4 * one.shape[1:].numel(), one.device)
    found = torch.empty(one.shape[:2], device=one.device)
    units = torch.empty(2, min(step, len(one)), *one.shape[1:], device=one.device)
    for start in range(0, len(one), step):
        pair = [tokens[start : start + step].float() for tokens in (one, other)]
        for unit, tokens in zip(units, pair, strict=True):
            torch.div(tokens, tokens.norm(dim=-1, keepdim=True).clamp_min_(1e-8), out=unit[: len(tokens)])
        product = units[0, : len(pair[0])].mul_(units[1, : len(pair[0])])
        torch.sum(product, -1, out=found[start : start + step])
    return found


def importance(grid: FeatureGrid) -> Tensor:
    """How much each token matters [T,P]: the encoder's attention where the backbone gives it, else the token's
    length.
    """
    return token_lengths(grid.values.flatten(1, 2)) if grid.saliency is None else grid.saliency.flatten(1).float()


def token_lengths(values: Tensor) -> Tensor:
    """Length of each token of frames [T,P,C]: [T,P] in float32."""
    return torch.cat([frames.float().norm(dim=-1) for frames in values.split(frames_at_once(values))])


def frames_at_once(values: Tensor) -> int:
    """How many frames of [T,P,C] to work on at once, in float32 and with all pairs of a frame's places."""
    places, width = values.shape[1:]
    return at_once(4 * places * max(places, width), values.device)


def encoder_values(videos: list[VideoFeatures], stream: str) -> list[Tensor]:
    """The values [T,H,W,C] of an encoder's grids; ValueError for a video without them."""
    for video in videos:
        if stream not in video.encoder:
            raise ValueError(
                f"The compressor reads the encoder features {stream!r}; a video has "
                f"{', '.join(map(repr, video.encoder)) or 'none'}. Its `streams` must be those of the backbone."
            )
    return [video.encoder[stream].values for video in videos]


class GridCompressor(TokenCompressor):
    """A compressor without weights that works on one grid at a time; a video's streams share the budget by size.

    `keep`: fraction of tokens kept, in (0, 1]; or `tokens`: how many are kept of each video. A member implements
    `compress`. Raises ValueError for a video without projected grids, or with numbers that are not finite.
    """

    nominal: ClassVar[bool] = False
    """Whether the budget is only aimed at, since the method's own rules decide."""

    def __init__(self, keep: float | None = None, tokens: int | None = None, frames_per_segment: int = 4) -> None:
        super().__init__()
        self.allowed = Budget(keep, tokens)
        self.frames_per_segment = frames_per_segment

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        """Few tokens for one grid; `source` indexes its T*H*W places."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither `compress` nor `forward`.")

    def one(self, video: VideoFeatures) -> VideoTokens:
        return joined([self.compress(*pair) for pair in zip(video.projected, self.budgets(video), strict=True)], video)

    def budgets(self, video: VideoFeatures) -> list[Budget]:
        """The budget of each grid of a video that can be compressed; ValueError for one that cannot."""
        if not video.projected:
            raise ValueError(
                f"{type(self).__name__} compresses grids in the language model's width; this video has none."
            )
        for grid in video.projected:
            if not torch.stack(grid.values.detach().aminmax()).isfinite().all():
                bad = int((~torch.isfinite(grid.values)).sum())
                raise ValueError(
                    f"The features hold {bad} values that are not finite; nothing sensible can be kept. Look at the "
                    "video and at the precision of the encoder."
                )
        return self.allowed.split([grid.tokens for grid in video.projected])

    def frames(self, grid: FeatureGrid) -> Tensor:
        """The segment of each of the T frames of a grid: [T]."""
        return segment_of_frame(len(grid.values), self.frames_per_segment, grid.values.device)

    def with_values(self, tokens: VideoTokens, values: Tensor) -> VideoTokens:
        """Kept tokens that took in others: the same places, other values [N,C]."""
        return replace(tokens, values=values.to(tokens.values.dtype))

    def taken(self, grid: FeatureGrid, source: Tensor, anchor: Tensor | None = None) -> VideoTokens:
        """The tokens of a grid at flat places `source` [N] (ascending), with everything that travels with them."""
        places = grid.values.shape[1] * grid.values.shape[2]
        return VideoTokens(
            grid.values.flatten(0, 2)[source],
            self.frames(grid)[source // places],
            source,
            anchor,
            tuple(side.flatten(0, 2)[source] for side in grid.extra),
        )


class SaliencyCompressor(GridCompressor):
    """A compressor that goes by what the encoder attends to, where the backbone tells it; with `variant` "released"
    by the length of a token alone.
    """

    needs = frozenset({"projected", "saliency"})

    def __init__(self, keep: float | None, tokens: int | None, variant: str, frames_per_segment: int) -> None:
        super().__init__(keep, tokens, frames_per_segment)
        self.variant = variant
        if variant == "released":
            self.needs = frozenset({"projected"})

    def token_saliency(self, grid: FeatureGrid) -> Tensor:
        """How much each token matters: [T,P]."""
        return token_lengths(grid.values.flatten(1, 2)) if self.variant == "released" else importance(grid)


def joined(parts: list[VideoTokens], video: VideoFeatures) -> VideoTokens:
    """Tokens of a video's streams one after the other; `source` counts on through the streams."""
    if len(parts) == 1:
        return parts[0]
    before = [0]
    for grid in video.projected[:-1]:
        before.append(before[-1] + grid.tokens)
    known = [part.source + n for part, n in zip(parts, before, strict=True) if part.source is not None]
    anchors = [part.anchor for part in parts if part.anchor is not None]
    return VideoTokens(
        torch.cat([part.values for part in parts]),
        torch.cat([part.segment for part in parts]),
        torch.cat(known) if len(known) == len(parts) else None,
        torch.cat(anchors) if len(anchors) == len(parts) else None,
        tuple(torch.cat(sides) for sides in zip(*(part.extra for part in parts), strict=True)),
    )


class Selector(GridCompressor):
    """Keeps each frame's best tokens. A member says which are good: `score`; and may say how many of each frame."""

    @abstractmethod
    def score(self, grid: FeatureGrid) -> Tensor:
        """How good each token is: [T,P], higher is kept."""

    def counts(self, grid: FeatureGrid, score: Tensor, budget: Budget) -> Tensor:
        """How many tokens of each frame are kept: [T] int; the same for all, unless a member knows better."""
        frames, places = score.shape
        return spread_evenly(budget.of(grid.tokens), frames, places, score.device)

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        score = self.score(grid)
        return self.taken(grid, best_of_each(score, self.counts(grid, score, budget)).flatten().nonzero()[:, 0])
