"""SparseVLM: at several depths, the video rows go on that the question attends to; some of the others are merged.

Letters: D width, m video rows, q rows of the question, r of them recycled, C clusters.
Source: SparseVLM (arXiv 2410.04417), sections 3.2-3.4, and its released code (version 1.0, for images), which was run
beside ours.
"""

from dataclasses import replace

import torch
from torch import Tensor

from langdc.interfaces import Rows
from langdc.layercompressors.base import BudgetedLayers, going_on, layercompressors, part_of

RECYCLED = 0.3
"""Part of the rows dropped, the best of them, that are merged."""
PER_CLUSTER = 10


@layercompressors.register("sparsevlm")
class SparseVLM(BudgetedLayers):
    """At several depths, keep the rows of the video with the most attention of the question; merge some others.

    By default that is after layers 2, 6 and 15 of 32, or as deep in others; `after` names them. Attention is that of
    the layer, averaged over heads and raters. Raters are the rows of the question whose embeddings are, on average over
    the video, more like it than the average. `recycle`: 0.3 of the rows dropped, the best of them, are clustered by
    density peaks, one cluster for 10 rows; a cluster's mean replaces its centre. `stages`: how many rows are kept at
    each depth, in place of `keep` or `tokens`, as the release has them for 576 tokens and three budgets; by default the
    same fraction of the rows before, recycled ones counted, as the budget allows.

    The release puts the merged rows behind all kept ones and numbers positions anew; here rows keep theirs. Its random
    tie-break, which decides where there are two clusters, is left out. A question of one row has no rater there; here
    that row rates. It takes the softmax in the model's type; here it is in float32. It counts what a layer leaves, not
    what it reads: its budget of 192 is a mean of 206 rows read.
    """

    paper = "arXiv 2410.04417"
    needs = frozenset({"question"})

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        recycle: bool = True,
        stages: tuple[int, ...] | None = None,
        after: tuple[int, ...] | None = None,
    ) -> None:
        if stages is not None and (keep, tokens) != (None, None):
            raise ValueError(f"stages={list(stages)} say how many rows are kept; leave out keep and tokens, or stages.")
        super().__init__(keep if stages is None else 1.0, tokens)
        if after is not None and not after:
            raise ValueError("after=[]: name at least one layer, or leave it out.")
        if stages is not None and any(count < 0 for count in stages):
            raise ValueError(f"stages={list(stages)}: a number of rows kept is 0 or more.")
        self.recycle, self.stages, self.after = recycle, stages, after

    def first(self, layers: int) -> list[int]:
        if self.after is not None:
            return [layer + 1 for layer in self.after]
        return sorted({part_of(layers, layer + 1, 32) for layer in (2, 6, 15)})

    def check(self, layers: int) -> None:
        super().check(layers)
        after = [layer - 1 for layer in self.first(layers)]
        if self.stages is not None and len(self.stages) != len(after):
            raise ValueError(f"stages={list(self.stages)}: there are {len(after)} stages, after layers {after}.")

    def begin(self, rows: Rows) -> list[int]:
        after = [layer - 1 for layer in self.first(rows.layers)]
        self.left = dict(zip(after, self.counts(rows) if self.stages is None else self.stages, strict=False))
        if self.left:
            self.raters = raters(rows.states[rows.video], rows.states[rows.question])
        return list(self.left)

    def keep(self, layer: int, rows: Rows) -> Rows:
        assert rows.attention is not None
        video = rows.video
        score = (rows.attention[:, video] * self.raters[:, None]).sum(0) / self.raters.sum()
        kept = self._kept(layer, len(video))
        order = video[score.argsort(descending=True, stable=True)]
        best, dropped = order[:kept], order[kept:]
        if not self.recycle or not len(dropped):
            return going_on(rows, best)
        some, count = recycled(len(dropped))
        if self.stages is None:
            count = min(count, self.left[layer] - kept)
        centres, means = clusters(rows.states[dropped[:some]], count)
        states = rows.states.clone()
        states[dropped[centres]] = means
        return going_on(replace(rows, states=states), torch.cat([best, dropped[centres]]))

    def _kept(self, layer: int, rows: int) -> int:
        """How many rows are kept as they are, so that recycled ones fit into the budget."""
        if self.stages is not None:
            return min(self.left[layer], rows)
        kept = left = self.left[layer]
        while self.recycle and 0 < kept < rows and kept + recycled(rows - kept)[1] > left:
            kept -= 1
        return kept


def raters(video: Tensor, question: Tensor) -> Tensor:
    """Which rows of the question [q,D] are more like the video [m,D] than their average: [q]; all if none is."""
    like = (video.float() @ question.float().T).softmax(-1).mean(0)
    above = like > like.mean()
    return above | ~above.any()


def recycled(dropped: int) -> tuple[int, int]:
    """How many of the rows dropped are merged, and into how many clusters."""
    some = min(int(RECYCLED * dropped) + 1, dropped)
    return some, min(some // PER_CLUSTER + 1, some)


def clusters(states: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The places [C] of `count` density peaks among rows [r,D], the highest first, and the means [C,D] of what is
    nearest to each. The density of a row counts its `count` nearest, itself among them (DPC-kNN).
    """
    apart = torch.cdist(states.float(), states.float()) / states.shape[1] ** 0.5
    density = torch.exp(-apart.topk(count, largest=False).values.square().mean(1))
    denser = density > density[:, None]
    distance = torch.where(denser, apart, apart.max()).amin(1)
    centres = (distance * density).argsort(descending=True, stable=True)[:count]
    of = apart[:, centres].argmin(1)
    of[centres] = torch.arange(count, device=of.device)
    total = states.new_zeros(count, states.shape[1], dtype=torch.float32).index_add_(0, of, states.float())
    return centres, (total / torch.bincount(of, minlength=count)[:, None]).to(states.dtype)
