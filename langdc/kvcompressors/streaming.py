"""StreamingLLM: the first tokens and the latest ones. Letters: K keys cached, L layers, n keys."""

import torch
from torch import Tensor

from langdc.kvcompressors.base import BudgetedKV, kvcompressors
from langdc.types import Chunk, Plan


@kvcompressors.register("streaming")
class Streaming(BudgetedKV):
    """StreamingLLM (arXiv 2309.17453): keep a video's first `sinks` tokens, its latest ones, and text.

    The sinks are at most half of the budget, which counts all videos of the prompt; layers keep the same, at unchanged
    positions.
    """

    paper = "StreamingLLM, arXiv 2309.17453"

    def __init__(
        self, keep: float | None = None, tokens: int | None = None, sinks: int = 4, chunk_frames: int = 32
    ) -> None:
        super().__init__(keep, tokens, chunk_frames)
        if sinks < 0:
            raise ValueError(f"sinks={sinks}; give 0 or more, 4 is usual.")
        self.sinks = sinks

    def begin(self, plan: Plan) -> None:
        super().begin(plan)
        self._is_video = torch.zeros(0, dtype=torch.bool)
        self._limit = self.count(self.share, sum(int(chunk.video.sum()) for chunk in plan.chunks))
        self._first = min(self.sinks, self._limit // 2)

    def kept(self, chunk: Chunk) -> list[Tensor]:
        text = self._is_video.new_zeros(chunk.past[0] - len(self._is_video))
        is_video = torch.cat([self._is_video, text, chunk.video.cpu()])
        rank = is_video.cumsum(0)
        latest = rank > rank[-1] - (self._limit - self._first)
        stays = ~is_video | (rank <= self._first) | latest
        self._is_video = is_video[stays]
        return [stays.nonzero()[:, 0].to(self.plan.embeds.device, non_blocking=True)] * len(chunk.past)
