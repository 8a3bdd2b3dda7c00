"""How a budget is divided among layers, for any KV compressor. Letters: L layers, n keys scored."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from langdc.registry import Registry, check_choice

allocators: Registry["Allocator"] = Registry("allocator")
Smoothing = Literal["count", "floor"]


class Allocator(ABC):
    """Sets each layer's share."""

    @abstractmethod
    def __call__(self, share: float, scores: Tensor) -> Tensor:
        """The fraction of a chunk that each layer keeps [L] in float64; `scores` [L,n] compare across layers."""


@allocators.register("even")
class _Even(Allocator):
    """The same share for every layer."""

    def __call__(self, share: float, scores: Tensor) -> Tensor:
        return torch.full((len(scores),), share, dtype=torch.float64)


@allocators.register("pyramid")
class _Pyramid(Allocator):
    """Falls linearly, from nearly twice the share to share / `beta` in the last layer (PyramidKV, arXiv 2406.02069)."""

    def __init__(self, beta: float = 20.0) -> None:
        if beta < 1:
            raise ValueError(f"beta={beta}; the last layer keeps share / beta, so give 1 or more, such as 20.")
        self.beta = beta

    def __call__(self, share: float, scores: Tensor) -> Tensor:
        layers = len(scores)
        if layers == 1:
            return torch.full((1,), share, dtype=torch.float64)
        lowest, highest = share / self.beta, 2 * share
        order = torch.arange(layers, dtype=torch.float64)
        return ((highest - lowest) - (highest - 2 * lowest) / (layers - 1) * order).clamp(max=1.0)


@allocators.register("empirical")
class _Empirical(Allocator):
    """From 0.3 to 0.1 over two thirds of the layers, then up to 0.2; scaled to the share. Upstream's "emprical"."""

    MEAN = 0.55 / 3

    def __call__(self, share: float, scores: Tensor) -> Tensor:
        layers = len(scores)
        order = torch.arange(layers, dtype=torch.float64)
        falling = 0.3 - (0.3 - 0.1) * 3 / layers / 2 * order
        # upstream divides by zero for 3 layers
        slope = 0.0 if layers <= 3 else (0.2 - 0.1) / (layers / 3 - 1)
        rising = slope * order + 0.2 - (layers - 1) * slope
        curve = torch.where(order < 2 * layers / 3, falling, rising)
        return (share / self.MEAN * curve).clamp(0.01, 1.0)


@allocators.register("adaptive")
class Adaptive(Allocator):
    """In proportion to how many of all layers' best scores a layer holds (AdaReTaKe, eqs. 11-15). `smoothing`: "count"
    adds one hit to every layer, as the released code; "floor" gives every layer at least 0.01, as the printed eq. 16.
    """

    FLOOR = 0.01

    def __init__(self, smoothing: Smoothing = "count") -> None:
        check_choice("smoothing", smoothing, Smoothing)
        self.smoothing = smoothing

    def __call__(self, share: float, scores: Tensor) -> Tensor:
        layers, keys = scores.shape
        best = scores.flatten().topk(min(scores.numel(), int(max(1, share * keys) * layers))).indices
        one = torch.ones((), device=best.device).expand(len(best))
        hits = torch.zeros(layers, device=best.device).index_add_(0, best // keys, one)
        return self.parts(hits) * (layers * share)

    def parts(self, hits: Tensor) -> Tensor:
        """Each layer's part of the total [L], from its number of hits, for which it waits."""
        hits = hits.cpu().double()
        if self.smoothing == "count":
            return (hits + 1) / (hits + 1).sum()
        over = (hits / hits.sum() - self.FLOOR).clamp(min=0)
        return over / over.sum() * (1 - len(hits) * self.FLOOR) + self.FLOOR
