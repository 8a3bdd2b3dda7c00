"""StreamingLLM: the first tokens and the latest ones. Letters: K keys cached, L layers, n keys."""

import torch
from torch import Tensor

from langdc.kvcompressors.base import BudgetedKV, kvcompressors
from langdc.types import Chunk, Plan


@kvcompressors.register("streaming")
class Streaming(BudgetedKV):
    """StreamingLLM (arXiv 2309.17453): keep a video's first `sinks` tokens, its latest ones, and text.

    The sinks are at most half of the budget, which counts all videos of the prompt; layers keep the same of what came
    to them, at unchanged positions.
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
        self._is_video = [torch.zeros(0, dtype=torch.bool)] * plan.layers
        self._came: dict[int, Tensor] = {}
        self._limit = self.count(self.share, sum(int(chunk.video.sum()) for chunk in plan.chunks))
        self._first = min(self.sinks, self._limit // 2)

    def observe(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        self._layer = layer

    def spread(self, places: Tensor, length: int) -> None:
        self._came[self._layer] = places

    def kept(self, chunk: Chunk) -> list[Tensor]:
        if not self._came and all(held is self._is_video[0] for held in self._is_video):  # all layers hold the same
            kept = self._stay(0, chunk)
            self._is_video = self._is_video[:1] * len(chunk.past)
            return [kept] * len(chunk.past)
        came = self._came
        if came:
            joined = torch.cat([places.to(self.plan.embeds.device) for places in came.values()]).cpu()
            came = dict(zip(came, joined.split([len(places) for places in came.values()]), strict=True))
        self._came = {}
        return [self._stay(layer, chunk, came.get(layer)) for layer in range(len(chunk.past))]

    def _stay(self, layer: int, chunk: Chunk, places: Tensor | None = None) -> Tensor:
        text = torch.zeros(chunk.past[layer] - len(self._is_video[layer]), dtype=torch.bool)
        is_video = torch.cat([self._is_video[layer], text, chunk.video.cpu()])
        came = torch.ones_like(is_video)
        if places is not None:
            came[chunk.past[layer] :] = False
            came[chunk.past[layer] + places] = True
        rank = (is_video & came).cumsum(0)
        latest = rank > rank[-1] - (self._limit - self._first)
        stays = came & (~is_video | (rank <= self._first) | latest)
        self._is_video[layer] = is_video[stays]
        return stays.nonzero()[:, 0].to(self.plan.embeds.device, non_blocking=True)
