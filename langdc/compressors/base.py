"""The zoo of token compressors and shared helpers. Letters: T frames, H W patch grid, P = H*W, N tokens kept."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from langdc.budget import Budget
from langdc.devices import at_once
from langdc.interfaces import TokenCompressor
from langdc.registry import Registry, check_choice
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens

compressors: Registry[TokenCompressor] = Registry("compressor", TokenCompressor)
Variant = Literal["fixed", "released"]
Per = Literal["frame", "patch"]


def segment_of_frame(grid: Tensor, frames_per_segment: int) -> Tensor:
    """The segment of each of the T frames of a grid [T,...]: [T]."""
    return torch.arange(len(grid), device=grid.device) // frames_per_segment


def segment_length(video: VideoFeatures, frames_per_segment: int) -> int:
    """How many steps T of a video's grids make a segment: all of those of an image, which are crops."""
    if not video.is_image:
        return frames_per_segment
    return max(len(grid.values) for grid in (*video.projected, *video.encoder.values()))


def stream_tokens(grids: Sequence[Tensor], frames_per_segment: int) -> VideoTokens:
    """All tokens of grids [T,n,D], one stream after the other."""
    segments = [segment_of_frame(grid, frames_per_segment).repeat_interleave(grid.shape[1]) for grid in grids]
    return VideoTokens(torch.cat([grid.flatten(0, 1) for grid in grids]), torch.cat(segments))


def best_of_each(score: Tensor, count: Tensor) -> Tensor:
    """The `count` [T] highest scores of every row of `score` [T,P] as a mask [T,P]; of equals, the earlier wins."""
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < count.to(rank.device)[:, None]


def best_places(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores of a row [n], ascending; of equals, the earlier wins."""
    return score.argsort(descending=True, stable=True)[:count].sort().values


def middles(length: int, parts: int, device: torch.device) -> Tensor:
    """The index in the middle of each of `parts` equal parts of a row: [parts]."""
    return (torch.arange(parts, device=device) * 2 + 1) * length // (2 * parts)


def spread_evenly(total: int, rows: int, limit: int, device: torch.device) -> Tensor:
    """`total` tokens over `rows` rows of at most `limit`, as even as whole numbers can be: [rows]."""
    each, rest = divmod(min(total, rows * limit), rows)
    ends = torch.arange(1, rows + 1, device=device) * rest // rows
    return each + ends.diff(prepend=ends.new_zeros(1))


def vllm_share(budget: Budget, total: int) -> float:
    """The share that vLLM keeps at the pruning rate 1 - keep: at 0.9 a little less than 0.1, 999 of 10,000."""
    return 1.0 - round(1.0 - budget.share(total), 10)


def whole_frames(budget: Budget, frames: int, places: int, variant: str) -> int:
    """How many of T frames of P tokens a budget keeps, at least one: rounded down, or "released": to the nearest."""
    if variant == "released":
        return max(1, round(budget.share(frames * places) * frames))
    return max(1, budget.of(frames * places) // places)


def apportioned(wanted: Tensor, total: int, limit: Tensor) -> Tensor:
    """Whole numbers near `wanted` [n], at most `limit` [n], that add up to `total`; the largest remainders go first."""
    wish, most = torch.stack([wanted.double(), limit.double()]).detach().cpu().numpy()  # waits once
    floor = np.minimum(np.floor(wish), most)
    missing = total - int(floor.sum())
    order = np.argsort(floor - wish, kind="stable")
    while missing > 0:
        open_to = order[floor[order] < most[order]][:missing]
        floor[open_to] += 1
        missing -= len(open_to)
    return torch.from_numpy(floor).long().to(wanted.device, non_blocking=True)


@torch.no_grad()
def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of tokens [n,P,C] at the same places: [n,P] in float32, bit-equal to torch's with little memory."""
    step = at_once(4 * one.shape[1:].numel(), one.device)
    result = torch.empty(one.shape[:2], device=one.device)
    units = torch.empty(2, min(step, len(one)), *one.shape[1:], device=one.device)
    for start in range(0, len(one), step):
        pair = [tokens[start : start + step].float() for tokens in (one, other)]
        for unit, tokens in zip(units, pair, strict=True):
            torch.div(tokens, tokens.norm(dim=-1, keepdim=True).clamp_min_(1e-8), out=unit[: len(tokens)])
        product = units[0, : len(pair[0])].mul_(units[1, : len(pair[0])])
        torch.sum(product, -1, out=result[start : start + step])
    return result


def importance(grid: FeatureGrid, by_length: bool = False) -> Tensor:
    """How much each token matters [T,P] in float32: the encoder's saliency where there is one, else its length."""
    if grid.saliency is not None and not by_length:
        return grid.saliency.flatten(1).float()
    values = grid.values.flatten(1, 2)
    return torch.cat([frames.float().norm(dim=-1) for frames in values.split(frames_at_once(values))])


def frames_at_once(values: Tensor) -> int:
    """How many frames of [T,P,C] to process together, in float32 and with all pairs of a frame's tokens."""
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
    """Whether the method's own rules decide, so that the budget may be missed."""
    variants: ClassVar[Any] = Literal["fixed"]
    """What `variant` may be, as a `Literal` type."""

    def __init__(
        self, keep: float | None = None, tokens: int | None = None, frames_per_segment: int = 4, variant: str = "fixed"
    ) -> None:
        super().__init__()
        check_choice(f"{type(self).__name__} variant", variant, self.variants)
        self.allowed, self.variant = Budget(keep, tokens), variant
        self.frames_per_segment = frames_per_segment

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        """Compress one grid; `source` indexes its T*H*W patches."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither `compress` nor `forward`.")

    def one(self, video: VideoFeatures) -> VideoTokens:
        parts, largest = [], self._largest(video)
        for grid, budget, most in zip(video.projected, self._split(video), largest, strict=True):
            # where squares may overflow or be 0, a power of two is taken out, which changes no digit
            scale = 2.0 ** max(-100, min(-math.frexp(most)[1], 100)) if most and not 2**-40 < most < 2**40 else None
            part = self.compress(replace(grid, values=grid.values * scale) if scale else grid, budget)
            parts.append(replace(part, values=part.values / scale) if scale else part)
        return joined(parts, video)

    def budgets(self, video: VideoFeatures) -> list[Budget]:
        """The budget of each grid of a video that can be compressed; ValueError for one that cannot."""
        self._largest(video)
        return self._split(video)

    def _split(self, video: VideoFeatures) -> list[Budget]:
        return self.allowed.split([grid.tokens for grid in video.projected])

    def _largest(self, video: VideoFeatures) -> list[float]:
        """The largest absolute value of each grid; ValueError as in `budgets`."""
        if not video.projected:
            raise ValueError(
                f"{type(self).__name__} compresses grids in the language model's width; this video has none."
            )
        found = [torch.stack(grid.values.detach().aminmax()).abs().max().item() for grid in video.projected]
        for grid, most in zip(video.projected, found, strict=True):
            if not math.isfinite(most):
                raise ValueError(
                    f"The features hold {int((~grid.values.isfinite()).sum())} values that are not finite; nothing "
                    "sensible can be kept. Look at the video and at the precision of the encoder."
                )
        return found

    def with_values(self, tokens: VideoTokens, values: Tensor) -> VideoTokens:
        """Kept tokens with other values [N,C], such as the means of merged ones."""
        return replace(tokens, values=values.to(tokens.values.dtype))

    def whole(self, grid: FeatureGrid) -> VideoTokens:
        """All tokens of a grid."""
        found = self.taken(grid, torch.arange(grid.tokens, device=grid.values.device))
        return replace(found, frame=grid.values.shape[1:3].numel())

    def taken(self, grid: FeatureGrid, source: Tensor, anchor: Tensor | None = None) -> VideoTokens:
        """The tokens of a grid at flat indices `source` [N] (ascending), with their side features."""
        places = grid.values.shape[1:3].numel()
        segment = segment_of_frame(grid.values, self.frames_per_segment)[source // places]
        values, *extra = (each.flatten(0, 2)[source] for each in (grid.values, *grid.extra))
        return VideoTokens(values, segment, source, anchor, tuple(extra))


class SaliencyCompressor(GridCompressor):
    """Selects by the encoder's saliency; by the tokens' lengths where there is none, and with `variant` "released"."""

    needs = frozenset({"projected", "saliency"})
    variants = Variant

    def __init__(self, keep: float | None, tokens: int | None, frames_per_segment: int, variant: str) -> None:
        super().__init__(keep, tokens, frames_per_segment, variant)
        if variant == "released":
            self.needs = frozenset({"projected"})

    def token_saliency(self, grid: FeatureGrid) -> Tensor:
        """How much each token matters: [T,P]."""
        return importance(grid, by_length=self.variant == "released")


def joined(parts: list[VideoTokens], video: VideoFeatures) -> VideoTokens:
    """Tokens of a video's streams one after the other; `source` counts on through the streams."""
    if len(parts) == 1:
        return parts[0]
    before = accumulate((grid.tokens for grid in video.projected[:-1]), initial=0)
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
    """Keeps each frame's best tokens. A member implements `score`, and may override how many are kept of each frame."""

    @abstractmethod
    def score(self, grid: FeatureGrid) -> Tensor:
        """How good each token is: [T,P], higher is kept."""

    def counts(self, grid: FeatureGrid, score: Tensor, budget: Budget) -> Tensor:
        """How many tokens of each frame are kept: [T] int; by default the same for all."""
        frames, places = score.shape
        return spread_evenly(budget.of(grid.tokens), frames, places, score.device)

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        score = self.score(grid)
        return self.taken(grid, best_of_each(score, self.counts(grid, score, budget)).flatten().nonzero()[:, 0])
