"""The zoo of layer compressors, and what they share. Letters: D width, L layers, n rows, m of them video."""

import math
from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from langdc.budget import Budget
from langdc.interfaces import LayerCompressor, Rows
from langdc.registry import Registry

layercompressors: Registry[LayerCompressor] = Registry("layercompressor", LayerCompressor)


class BudgetedLayers(LayerCompressor):
    """A layer compressor with a budget of the video's rows that a layer reads, on average over all layers.

    `keep`: the fraction of them, or `tokens`: their number, of all videos of the prompt together. A budget that covers
    them changes nothing. ValueError for one that is used up by the layers that read all. A member implements `first`.
    """

    def __init__(self, keep: float | None = None, tokens: int | None = None) -> None:
        self.budget = Budget(keep, tokens)

    @abstractmethod
    def first(self, layers: int) -> list[int]:
        """The layers, of `layers` in all, before which rows of the video are dropped."""

    def check(self, layers: int) -> None:
        first, keep = self.first(layers), self.budget.keep
        if first[0] < 1 or first[-1] >= layers or first != sorted(set(first)):
            raise ValueError(f"Rows are dropped before layers {first}; give ascending ones of 1 to {layers - 1}.")
        if keep is not None and keep * layers <= first[0]:
            raise ValueError(
                f"{type(self).__name__} lets {first[0]} of {layers} layers read all tokens of a video; a budget of "
                f"keep={keep:.4g} cannot be met. Set keep to more than {math.ceil(first[0] / layers * 1000) / 1000}, "
                "or drop after an earlier layer."
            )

    def counts(self, rows: Rows) -> list[int]:
        """How many rows of the video the layers read from each of `first` on; none if nothing is dropped.
        Each stage keeps the same fraction of the stage before, the largest with which the budget is not exceeded.
        """
        total, layers, first = len(rows.video), rows.layers, self.first(rows.layers)
        if self.budget.covers(rows.shown):
            return []
        lengths = [stop - start for start, stop in zip(first, [*first[1:], layers], strict=True)]
        budget = self.budget.share(rows.shown) * total
        allowed = budget * layers - first[0] * total
        if allowed < layers - first[0] - 1e-6:
            least = (first[0] * total + layers - first[0]) / layers / total
            raise ValueError(
                f"{type(self).__name__} lets {first[0]} of {layers} layers read all {total} tokens of a video, on "
                f"average {first[0] * total / layers:.0f}; a budget of {budget:.0f} is less. Set "
                f"{self.budget.least(least, rows.shown)}, or drop after an earlier layer."
            )
        low, high = 0.0, 1.0
        for _ in range(50):
            share = (low + high) / 2
            used = sum(length * max(1.0, total * share**stage) for stage, length in enumerate(lengths, 1))
            low, high = (share, high) if used <= allowed else (low, share)
        found = [max(1, int(total * low**stage + 1e-6)) for stage in range(1, len(first) + 1)]
        spare = int(allowed - sum(n * length for n, length in zip(found, lengths, strict=True)) + 1e-6)
        for stage in reversed(range(len(found))):  # what rounding down left
            most = total if stage == 0 else found[stage - 1]
            more = min(spare // lengths[stage], most - found[stage])
            found[stage], spare = found[stage] + more, spare - more * lengths[stage]
        return found


class OneLayer(BudgetedLayers):
    """Drops rows once, before `layer`, by default as deep as `usual` says: a layer, of how many."""

    usual: ClassVar[tuple[int, int]] = (2, 32)

    def __init__(self, keep: float | None = None, tokens: int | None = None, layer: int | None = None) -> None:
        super().__init__(keep, tokens)
        self.layer = layer

    def first(self, layers: int) -> list[int]:
        return [self.layer if self.layer is not None else part_of(layers, *self.usual)]

    def begin(self, rows: Rows) -> list[int]:
        self.left = self.counts(rows)
        return [layer - 1 for layer in self.first(rows.layers)] if self.left else []


def part_of(layers: int, layer: float, of: int) -> int:
    """The layer of `layers` that is as deep as `layer` of `of`, the first one excepted."""
    return min(max(1, round(layer * layers / of)), layers - 1)


def going_on(rows: Rows, video: Tensor) -> Rows:
    """Text, and the rows at the places `video` [m]."""
    mask = rows.video_id < 0
    mask[video] = True
    return rows.take(mask.nonzero()[:, 0])


def best_of_video(rows: Rows, score: Tensor, count: int) -> Tensor:
    """The places of the `count` video rows with the highest `score` [m], ascending; of equals, the earlier wins."""
    order = score.argsort(descending=True, stable=True)[:count]
    return rows.video[order.sort().values]
