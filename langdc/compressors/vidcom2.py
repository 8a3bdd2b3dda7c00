"""VidCom2: distinctive frames get more tokens, and the most distinctive tokens of each frame are kept.

Letters: T frames, P = H*W places of a frame, C width.
Source: VidCom2 (arXiv 2505.14454), section 3, and its released code.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from langdc.compressors.base import Budget, GridCompressor, apportioned, best_of_each, compressors, vllm_share
from langdc.devices import at_once
from langdc.types import FeatureGrid, VideoTokens

Variant = Literal["fixed", "released", "paper", "vllm"]
WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)  # of the kernels, released code
TEMPERATURE = 0.01  # section 3.2


@compressors.register("vidcom2")
class VidCom2(GridCompressor):
    """Keep what differs most from the video's mean and from its frame's mean; frames far from the mean keep more.

    `variant`: "released" does as the released code (Gaussian kernels on the half of the channels that varies least);
    "paper" is the printed rule (cosine, all channels); "fixed", the default, is the released rule with a budget that is
    met exactly: rounding and the cap of a frame lose nothing, and keep=1 keeps all, where the released code drops
    tokens of frames below the average. "vllm" keeps the very tokens that vLLM keeps at the pruning rate 1 - keep: it
    computes in the features' own type, with side features such as DeepStack's beside the tokens, and corrects the
    released counts by the best or worst tokens of the whole video. It keeps at least T tokens.
    """

    variants = Variant
    paper = "arXiv 2505.14454"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment, variant)

    def compress(self, grid: FeatureGrid, budget: Budget) -> VideoTokens:
        if self.variant == "fixed" and budget.covers(grid.tokens):
            return self.whole(grid)
        if self.variant == "vllm":
            return self.taken(grid, self.as_vllm(grid, budget).nonzero()[:, 0])
        to_video, to_frame = self.likeness(grid)
        kept = best_of_each(-(to_video + to_frame), self.shares(to_video, budget))
        return self.taken(grid, kept.flatten().nonzero()[:, 0])

    def likeness(self, grid: FeatureGrid) -> tuple[Tensor, Tensor]:
        """Similarity of each token to the mean of the video, and to that of its frame: [T,P] twice."""
        values = grid.values.flatten(1, 2)
        if self.variant == "paper":
            values = values.float()
            frame = values.mean(1, keepdim=True)
            return _cosine(values, frame.mean(0, keepdim=True)), _cosine(values, frame)
        parts = values.split(at_once(4 * values[0].numel(), values.device))
        quiet = _quiet_channels(parts, values.shape[:2].numel())
        columns = zip(*(_within_frames(part, quiet) for part in parts), strict=True)
        size, frame, to_frame = map(torch.cat, columns)
        inverse = size.clamp_min(1e-12).reciprocal()
        video = frame.mean(0)
        to_video = torch.cat([part.float() @ video for part in parts])
        here = (size * inverse).square()  # the squared length of a normalised token: 1, or 0 for one of zeros
        of_frame = frame.square().sum(1, keepdim=True)
        from_video = here + video.square().sum() - 2 * to_video * inverse
        return _kernels(from_video), _kernels(here + of_frame - 2 * to_frame * inverse)

    @torch.no_grad()
    def as_vllm(self, grid: FeatureGrid, budget: Budget) -> Tensor:
        """Which tokens vLLM keeps: [T*P] bool. Of equal ones those that torch.topk takes."""
        frames, places = len(grid.values), grid.values[0, ..., 0].numel()
        values = torch.cat([grid.values, *grid.extra], -1).flatten(0, 2) if grid.extra else grid.values.flatten(0, 2)
        quiet = values.var(0, unbiased=False).topk(max(1, values.shape[1] // 2), largest=False).indices
        unit = normalize(values[:, quiet].unflatten(0, (frames, places)), dim=-1)
        to_video, to_frame = (_kernels((unit - unit.mean(dim, True)).square().sum(-1)) for dim in ((0, 1), 1))
        likeness, share = to_video + to_frame, vllm_share(budget, grid.tokens)
        unusual = -to_video.mean(1)
        lead = ((unusual - unusual.max()) / TEMPERATURE).softmax(0)
        wish = (share * (1 + lead - lead.mean())).clamp(max=1.0) * places
        counts = wish.round().long().clamp(1, places).tolist()
        kept = torch.zeros_like(likeness, dtype=torch.bool)
        for row, alike, count in zip(kept, likeness, counts, strict=True):
            row.index_fill_(0, alike.topk(count, largest=False, sorted=False).indices, True)
        wanted = budget.of(grid.tokens) if budget.keep is None else int(grid.tokens * share)
        kept, likeness, over = kept.flatten(), likeness.flatten(), sum(counts) - max(frames, wanted)
        among = (kept if over > 0 else ~kept).nonzero()[:, 0]
        changed = likeness[among].topk(abs(over), largest=over > 0, sorted=False).indices
        return kept.index_fill_(0, among[changed], over < 0)

    def shares(self, to_video: Tensor, budget: Budget) -> Tensor:
        """How many tokens each frame keeps: [T]."""
        frames, places = to_video.shape
        keep = budget.share(frames * places)
        unusual = -to_video.mean(1)
        lead = ((unusual - unusual.max()) / TEMPERATURE).softmax(0)
        scale = (keep * (1 + lead - lead.mean())).clamp(max=1.0)
        if self.variant == "released":
            return (scale * places).round().clamp(min=1).long()
        return apportioned(scale * places, budget.of(frames * places), torch.full_like(scale, places))


def _cosine(values: Tensor, centre: Tensor) -> Tensor:
    """Cosine of tokens [T,P,C] and their centre [T or 1,1,C]: [T,P]."""
    size = values.norm(dim=-1) * centre.norm(dim=-1)
    return (values @ centre.mT)[..., 0] / size.clamp_min(1e-12)


def _quiet_channels(parts: Sequence[Tensor], tokens: int) -> Tensor:
    """One at the half of the channels that varies least over a video in parts [t,P,C], zero elsewhere: [C]."""
    mean = torch.stack([part.sum((0, 1), dtype=torch.float32) for part in parts]).sum(0) / tokens
    spread = torch.stack([(part - mean).square_().sum((0, 1)) for part in parts]).sum(0)
    return torch.zeros_like(mean).index_fill(0, spread.topk(len(mean) // 2, largest=False).indices, 1.0)


def _within_frames(values: Tensor, quiet: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of frames [t,P,C], by quiet channels: lengths [t,P], the mean unit token [t,C], inner products with it [t,P]."""
    values = values * quiet
    size = values.norm(dim=-1)
    inverse = size.clamp_min(1e-12).reciprocal()[:, None]
    frame = (inverse @ values) / values.shape[1]
    return size, frame[:, 0], (values @ frame.mT)[..., 0]


def _kernels(distance: Tensor) -> Tensor:
    """Sum of Gaussian kernels of squared distances."""
    distance = distance.clamp_min(0)
    return sum(((-distance / (2 * width)).exp() for width in WIDTHS), torch.zeros_like(distance))
