"""The zoo of KV compressors, and what they share. Letters: G key heads, L layers, M length, Q queries, n keys."""

import torch
from torch import Tensor

from langdc.budget import Budget
from langdc.interfaces import KVCompressor
from langdc.kvcompressors.allocators import Allocator, allocators
from langdc.kvcompressors.scorers import Scorer, scorers
from langdc.registry import Registry
from langdc.types import Chunk, Plan

kvcompressors: Registry[KVCompressor] = Registry("kvcompressor", KVCompressor)


class BudgetedKV(KVCompressor):
    """A KV compressor with a budget: `keep`, the fraction kept of every video, or `tokens` for the whole prompt.

    With `tokens`, the fraction is tokens / M where the prompt is longer, as upstream has it: M counts text, which is
    always kept, so somewhat more than `tokens` keys remain. A budget that covers the prompt changes nothing.
    """

    def __init__(self, keep: float | None = None, tokens: int | None = None, chunk_frames: int = 32) -> None:
        self.budget = Budget(keep, tokens)
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames={chunk_frames}; a chunk needs at least one frame, 32 is usual.")
        self.keep, self.tokens, self.chunk_frames = keep, tokens, chunk_frames
        self.share = 1.0

    def begin(self, plan: Plan) -> None:
        self.plan = plan
        self.share = self._share(plan)
        self.active = self.share < 1

    def _share(self, plan: Plan) -> float:
        return self.budget.share(len(plan.embeds))

    def count(self, share: float, keys: int) -> int:
        """How many keys `share` of `keys` is: rounded down, at least one, at most all."""
        return Budget(keep=min(share, 1.0)).of(keys) if share > 0 else 1


class BestKeysKV(BudgetedKV):
    """Keeps each chunk's best keys in every layer: a `scorer` ranks them, an `allocator` sets each layer's number.

    Both are given by name ("self", "window", "question"; "even", "pyramid", "empirical", "adaptive"), as {"name": ...,
    settings} or as objects. `per_head`: each key head keeps its own best keys. `released`: rounding and ties are as in
    upstream, which drops keys where the budget covers the prompt, too.
    """

    per_head = False
    released = False
    keeps_old = True

    def __init__(
        self,
        keep: float | None,
        tokens: int | None,
        scorer: str | dict | Scorer,
        allocator: str | dict | Allocator,
        chunk_frames: int,
    ) -> None:
        super().__init__(keep, tokens, chunk_frames)
        self.scorer, self.allocator = scorers.of(scorer), allocators.of(allocator)
        self.question_window = self.scorer.question_window

    def begin(self, plan: Plan) -> None:
        super().begin(plan)
        self._scores: list[Tensor] = []
        self.question_window = self.scorer.question_window if self.active else 0
        if self.active and self.question_window and plan.chunks and plan.chunks[-1].rows.stop == len(plan.embeds):
            raise ValueError(
                "The prompt ends with a video, so no question can say what matters in it; put text after the video, "
                "or give scorer='self'."
            )
        self.active = self.active or self.released

    def observe(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        if layer == 0:
            self._scores = []
        self._scores.append(self.score(query, key))

    def spread(self, places: Tensor, length: int) -> None:
        scores = self._scores[-1]
        self._scores[-1] = scores.new_full((*scores.shape[:-1], length), -torch.inf)
        self._scores[-1][..., places] = scores

    def score(self, query: Tensor, key: Tensor) -> Tensor:
        """The scorer's scores of a layer's keys [1,G,n,E] for the queries [1,h,Q,E]: [G,n]."""
        return self.scorer(query, key)

    def chunk_share(self, chunk: Chunk) -> float:
        """The fraction kept of a chunk, averaged over layers."""
        return self.share

    def adjust(self, scores: Tensor, chunk: Chunk) -> Tensor:
        """Change the scores [L,n] or [L,G,n] before the best are chosen; default: unchanged."""
        return scores

    def kept(self, chunk: Chunk) -> list[Tensor]:
        scores = torch.stack([per_layer.to(self._scores[0].device) for per_layer in self._scores])
        masks = chunk.video, ~chunk.video
        video_rows, text = (mask.nonzero()[:, 0].to(scores.device, non_blocking=True) for mask in masks)
        scores = scores[..., video_rows] if len(text) else scores
        shares = self.shares(scores.mean(1), chunk)
        ranked = self.adjust(scores if self.per_head else scores.mean(1), chunk)
        best = self.pick(ranked, [self.count(share, len(video_rows)) for share in shares])
        if len(text):  # between frames: never dropped
            best = [torch.cat([video_rows[b], text.expand(*b.shape[:-1], -1)], -1).sort(-1).values for b in best]
        rows = torch.arange(max(chunk.past) + len(chunk), device=scores.device)
        old = [rows[:past].expand(*best[0].shape[:-1], -1) for past in chunk.past]
        return [torch.cat([o, b + past], -1) for o, b, past in zip(old, best, chunk.past, strict=True)]

    def count(self, share: float, keys: int) -> int:
        return min(keys, max(1, int(share * keys))) if self.released else super().count(share, keys)

    def shares(self, scores: Tensor, chunk: Chunk) -> list[float]:
        """The fraction that each layer keeps of a chunk, from the scores [L,n]."""
        share = self.chunk_share(chunk)
        return self.allocator(share, scores).tolist() if share < 1 else [1.0] * len(scores)

    def pick(self, scores: Tensor, counts: list[int]) -> list[Tensor]:
        """Per layer of `scores` [L,...,n], the places of the best `counts` [L] of the last axis, ascending; of equals
        the earlier wins, unless `released`.
        """
        if self.released:
            best = [of_layer.topk(count).indices for of_layer, count in zip(scores, counts, strict=True)]
            return [places.sort().values for places in best]
        keys = scores.shape[-1]
        limit = torch.tensor(counts).to(scores.device, non_blocking=True).view(-1, *[1] * (scores.ndim - 1))
        order = scores.argsort(dim=-1, descending=True, stable=True)
        rest = torch.arange(keys, device=scores.device) >= limit
        places = order.masked_fill_(rest, keys).sort(-1).values  # of all layers at once
        return [of_layer[..., :count] for of_layer, count in zip(places, counts, strict=True)]
