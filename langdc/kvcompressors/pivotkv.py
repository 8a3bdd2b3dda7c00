"""PivotKV, the KV half of ReTaKe. Letters: A rotary axes, L layers, n keys, K keys cached."""

from typing import Literal

import torch
from torch import Tensor

from langdc.kvcompressors.allocators import Allocator
from langdc.kvcompressors.base import BestKeysKV, kvcompressors
from langdc.kvcompressors.scorers import Scorer
from langdc.registry import check_choice
from langdc.types import Chunk

Variant = Literal["fixed", "released", "paper"]


@kvcompressors.register("pivotkv")
class PivotKV(BestKeysKV):
    """Keep, of every chunk and in every layer, the tokens that the chunk's own tokens attend to most.

    ReTaKe (arXiv 2412.20504), section 3.3 and eq. 6; anchors are DPSelect's key patches. `compact_positions`: the times
    of kept tokens are scaled by the fraction kept, later tokens follow directly after them, and scores are computed
    without rotation. With scorer="question", and an allocator, this is upstream's VidLang cache.

    "fixed" (default): the released rule, but anchors come first whatever they score (released: an anchor scores 1.0,
    the average, so any better token comes before it and ties among anchors are broken arbitrarily), and a budget that
    covers the prompt changes nothing (released: gaps in time are closed all the same). "released": the code of 2025.
    "paper": anchors first, positions unchanged.
    """

    paper = "ReTaKe, arXiv 2412.20504"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        scorer: str | dict | Scorer = "self",
        allocator: str | dict | Allocator = "even",
        compact_positions: bool | None = None,
        chunk_frames: int = 32,
    ) -> None:
        super().__init__(keep, tokens, scorer, allocator, chunk_frames)
        check_choice("pivotkv variant", variant, Variant)
        self.variant, self.released = variant, variant == "released"
        self.compact_positions = variant != "paper" if compact_positions is None else compact_positions
        self.position_free = self.continuous = self.compact_positions

    def adjust(self, scores: Tensor, chunk: Chunk) -> Tensor:
        if chunk.anchor is None:
            return scores
        anchor = chunk.anchor[chunk.video].to(scores.device, non_blocking=True)
        first = scores.new_ones(()) if self.released else scores + scores.amax(-1, keepdim=True) + 1
        return torch.where(anchor, first, scores)

    def kept(self, chunk: Chunk) -> list[Tensor]:
        rows = super().kept(chunk)
        self._chosen = [per_layer[past:] for per_layer, past in zip(rows, chunk.past, strict=True)]
        return rows

    def positions(self, chunk: Chunk, layer: int, old: Tensor) -> Tensor:
        chosen = self._chosen[layer]
        return compacted(old, chosen, len(chosen) / len(chunk)) if self.compact_positions else old


def compacted(old: Tensor, rows: Tensor | slice, factor: float) -> Tensor:
    """Positions [A,1,K] with the times of `rows` scaled by `factor` to their earliest, rounded down as upstream."""
    time = old[0, 0, rows]
    first, new = time.min(), old.clone()
    new[0, 0, rows] = first + ((time - first) * factor).long()
    return new
