"""AdaReTaKe, also released as FlexReduc: budgets by chunk and by layer. Letters: A rotary axes, L layers, n keys."""

import math
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from langdc.kvcompressors.allocators import Adaptive, Allocator
from langdc.kvcompressors.base import BestKeysKV, kvcompressors
from langdc.kvcompressors.pivotkv import compacted
from langdc.kvcompressors.scorers import Scorer
from langdc.kvcompressors.temporal import means_of_frames, shares_by_change, shares_by_distance
from langdc.registry import check_choice
from langdc.types import Chunk, Plan

Variant = Literal["fixed", "released-2026", "released", "paper"]
VARIANTS = {
    "fixed": (),
    "released-2026": ("text_scores", "saturated_question", "half_video", "text_clock"),
    "released": ("text_scores",),
    "paper": (),
}
_TEXT_SCORE = 1000.0  # what upstream gives to text


@kvcompressors.register("flexreduc")
class FlexReduc(BestKeysKV):
    """Keep the tokens that the question attends to most, more of them in changing chunks and in layers of high scores.

    AdaReTaKe (arXiv 2503.12559), section 4. Every chunk is read together with the question (`scorer`). `temporal`:
    chunks that differ from their neighbours keep more, on average the budget. `allocator`: layers keep in proportion to
    their number among all layers' best (eqs. 11-15). `compact_positions`: the times of kept tokens are scaled by the
    budget's fraction, later tokens follow directly after them, and scores are computed without rotation.

    "fixed" (default): the full release of 2026 without its defects. "released-2026": that release as it runs with the
    transformers it pins. "released": the early release of 2025, in which a chunk's share grows with the part of its
    scores above 1 % of the best (its square root times that of `boost`), and which mostly exceeds the budget. "paper":
    the printed eqs. 8-16.
    `defects`, by default those of the variant, enables some of them: "text_scores": the first chunk of a video is
    selected by the scores of the text before it, so arbitrarily; "saturated_question": a chunk that is kept whole also
    keeps the question's keys; "half_video": shares in time are computed from the first half of the video;
    "text_clock": the question's positions are counted in tokens instead of time, and gaps between chunks stay.
    """

    paper = "AdaReTaKe, arXiv 2503.12559"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        scorer: str | dict | Scorer = "question",
        allocator: str | dict | Allocator | None = None,
        temporal: bool = True,
        compact_positions: bool = True,
        chunk_frames: int = 32,
        boost: float = 4.0,
        defects: Collection[str] | None = None,
    ) -> None:
        check_choice("flexreduc variant", variant, Variant)
        allocator = allocator or Adaptive("floor" if variant == "paper" else "count")
        super().__init__(keep, tokens, scorer, allocator, chunk_frames)
        self.variant, self.released = variant, variant.startswith("released")
        self.temporal, self.compact_positions, self.boost = temporal, compact_positions, boost
        self.defects = frozenset(VARIANTS[variant] if defects is None else defects)
        unknown = self.defects - set(VARIANTS["released-2026"])
        if unknown:
            raise ValueError(f"Unknown defects {sorted(unknown)}; there are {sorted(VARIANTS['released-2026'])}.")
        self.position_free = compact_positions
        self.continuous = compact_positions and "text_clock" not in self.defects

    def begin(self, plan: Plan) -> None:
        super().begin(plan)
        self._read_to = 0
        self._shares = self._chunk_shares(plan) if self.share < 1 else {}

    def _share(self, plan: Plan) -> float:
        if self.variant != "paper" or self.tokens is None:
            return super()._share(plan)
        video = sum(int(chunk.video.sum()) for chunk in plan.chunks)
        room = self.tokens - len(plan.embeds) + video
        if room < 1:
            raise ValueError(f"tokens={self.tokens} does not cover the text of {len(plan.embeds) - video} tokens.")
        return min(1.0, room / max(video, 1))

    def _chunk_shares(self, plan: Plan) -> dict[int, float]:
        """Each chunk's share, by the prompt row that it starts at."""
        shares: dict[int, float] = {}
        for video_id in {chunk.video_id for chunk in plan.chunks}:
            chunks = [chunk for chunk in plan.chunks if chunk.video_id == video_id]
            in_time = self.temporal and self.variant != "released"
            each = self._shares_in_time(plan, chunks) if in_time else [self.share] * len(chunks)
            shares |= {chunk.rows.start: share for chunk, share in zip(chunks, each, strict=True)}
        return shares

    def _shares_in_time(self, plan: Plan, chunks: list[Chunk]) -> list[float]:
        parts = [plan.embeds[chunk.rows][chunk.video].float() for chunk in chunks]
        size = chunks[0].frame_tokens
        if self.variant == "paper":
            if size is None:
                raise ValueError("variant='paper' compares tokens frame by frame; every frame needs as many of them.")
            return shares_by_change(self.share, [p[: len(p) // size * size].unflatten(0, (-1, size)) for p in parts])
        if size is None:
            return shares_by_distance(self.share, [part.mean(0) for part in parts])
        whole = torch.cat(parts)
        if "half_video" in self.defects:
            whole, size = whole[: len(whole) // size * (size // 2)], size // 2
        means = means_of_frames(whole, size, len(chunks)) if size else None
        return [self.share] * len(chunks) if means is None else shares_by_distance(self.share, means)

    def question_positions(self, chunk: Chunk, positions: Tensor) -> Tensor:
        if "text_clock" not in self.defects:
            return super().question_positions(chunk, positions)
        offset = positions.shape[2] - chunk.question_window - chunk.rows.stop
        return positions[:, :, -chunk.question_window :] - offset

    def chunk_share(self, chunk: Chunk) -> float:
        return self._shares.get(chunk.rows.start, 1.0)

    def shares(self, scores: Tensor, chunk: Chunk) -> list[float]:
        return self._final(self.allocator(self.chunk_share(chunk), scores), scores)

    def _final(self, shares: Tensor, scores: Tensor) -> list[float]:
        per_layer = (shares.float() if self.released else shares).tolist()
        if self.variant == "released" and self.temporal:
            changing = (scores > 0.01 * scores.amax(1, keepdim=True)).double().mean(1).tolist()
            factors = [min(2.0, max(0.5, math.sqrt(self.boost * part))) for part in changing]
            per_layer = [min(1.0, factor * share) for factor, share in zip(factors, per_layer, strict=True)]
        return [max(0.01, share) for share in per_layer]

    def kept(self, chunk: Chunk) -> list[Tensor]:
        text, self._read_to = chunk.rows.start - self._read_to, chunk.rows.stop
        if self.chunk_share(chunk) >= 1:
            window = chunk.question_window if "saturated_question" in self.defects else 0
            rows = torch.arange(max(chunk.past) + len(chunk) + window, device=self.plan.embeds.device)
            return [rows[: past + len(chunk) + window] for past in chunk.past]
        if text and "text_scores" in self.defects:
            return self._kept_by_text(chunk, text)
        return super().kept(chunk)

    def _kept_by_text(self, chunk: Chunk, text: int) -> list[Tensor]:
        """Rows that are kept when the scores of the `text` tokens before the chunk choose among its last tokens."""
        layers, share = len(chunk.past), self.chunk_share(chunk)
        stale = torch.full((layers, text), _TEXT_SCORE)
        shares = self.allocator(share, stale)
        # which of equal scores are taken depends on what else is in the list
        if isinstance(self.allocator, Adaptive):
            listed = torch.cat([stale.flatten(), torch.stack(self._scores).mean(1).flatten().cpu()])
            best = listed.topk(int(max(1, share * text) * layers)).indices // text
            shares = self.allocator.parts(torch.bincount(best, minlength=layers)[:layers]) * (layers * share)
        best = self.pick(stale, [self.count(share, text) for share in self._final(shares, stale)])
        starts = [past + len(chunk) - text for past in chunk.past]
        return [torch.cat([torch.arange(start), b + start]) for start, b in zip(starts, best, strict=True)]

    def positions(self, chunk: Chunk, layer: int, old: Tensor) -> Tensor:
        if not self.compact_positions or self.chunk_share(chunk) >= 1:
            return old
        return compacted(old, slice(chunk.past[layer], None), self.share)
