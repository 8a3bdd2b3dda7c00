"""FrameFusion: rows that are like those before them in time are merged at the first layers, then the others pruned.

Letters: D width, m video rows. Source: FrameFusion (arXiv 2501.01986), section 3, and its released code, which was run
beside ours: its rule on made rows, and its Qwen2-VL on a tiny checkpoint.
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from langdc.budget import Budget
from langdc.devices import at_once
from langdc.interfaces import LayerCompressor, Rows
from langdc.layercompressors.base import best_of_video, going_on, layercompressors
from langdc.registry import check_choice

Variant = Literal["fixed", "released"]

RELEASED_LAYERS = 28


@layercompressors.register("framefusion")
class FrameFusion(LayerCompressor):
    """Merge neighbouring frames' rows at the first layers, then once keep the rows with the most attention.

    Before the first layer, and then after the attention of each, a row goes into the row before it in time at the same
    place, which becomes the mean, where their cosine is `similarity` or more; runs of them go into their first. Where
    more are alike than the budget needs, only the most alike are merged, and that was all. Once less than `least` of
    the rows was merged, the next layer's attention of the last `asking` rows, averaged over heads, says which are kept,
    as many as the budget has left for the layers that follow. Its `cost` is our `keep`: the mean over layers of the
    rows that their attention reads; feed-forward parts read fewer, as it acts before them.

    The release asks with one row, on Qwen2-VL with four. `variant`: "released" takes the model for one of 28 layers,
    rounds to the nearest, so that a budget may be passed, and stops with an error where merged rows have used it up;
    "fixed", the default, counts layers, rounds down, and prunes before that. The release compares and merges in the
    model's type, and with more than 256 frames miscounts runs in 16 bits; here it is float32.
    """

    paper = "arXiv 2501.01986"
    halfway = True
    needs = frozenset({"last", "frames"})

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        similarity: float = 0.6,
        least: float = 0.1,
        asking: int = 1,
    ) -> None:
        self.budget = Budget(keep, tokens)
        check_choice("framefusion variant", variant, Variant)
        if not -1 <= similarity <= 1 or not 0 <= least <= 1 or asking < 1:
            raise ValueError(
                f"similarity={similarity}, least={least}, asking={asking}: give a cosine, a fraction, and at least 1 "
                "row; 0.6, 0.1 and 1 are usual."
            )
        self.variant, self.similarity, self.least, self.asking = variant, similarity, least, asking
        self.needs = frozenset({"question" if asking > 1 else "last", "frames"})

    def begin(self, rows: Rows) -> set[int]:
        self.layers = RELEASED_LAYERS if self.variant == "released" else rows.layers
        last = min(rows.layers, self.layers) - 1
        self.after = set[int]() if self.budget.covers(rows.shown) else set(range(-1, last))
        if self.after and rows.in_frame is None:
            raise ValueError(
                "FrameFusion compares each frame with the one before, place by place; the tokens given are not frames "
                "of as many tokens each, one after the other. Leave out the compressor before the language model, or "
                "take one that makes grids, such as pool; a model that leaves out tokens itself, as VideoLLaMA3 does, "
                "fits only where it leaves out none."
            )
        self.total, self.shown, self.merging = len(rows.video), rows.shown, True
        self.used, self.part = 0.0, 1.0  # what the layers so far have read, and what came last, in parts of all rows
        return self.after

    def keep(self, layer: int, rows: Rows) -> Rows:
        video, following = rows.video, self.layers - layer - 1
        self.used += self.part if layer >= 0 else 0.0
        allowed = self.budget.share(rows.shown) * self.layers - self.used
        if allowed < 0:
            raise ValueError(self._advice(self.used * self.total))
        drop = max(0.0, 1 - allowed / (following * self.part))
        fits = max(1, math.floor(len(video) * (1 - drop) + 1e-6))
        if self.variant == "released":
            fits = len(video) - int(drop * len(video)) if self.merging else round(len(video) * (1 - drop))
        if self.merging:
            order, like = likeness(rows)
            gone = like >= self.similarity
            ratio = int(gone.sum()) / len(video)
            if ratio >= drop:
                self.after.clear()
                most = like.argsort(descending=True, stable=True)[: len(video) - fits]
                return merged(rows, order, torch.zeros_like(gone).index_fill_(0, most, True))
            came = self.part * (1 - ratio)
            least = came * self.total + following - 1  # the next layer reads what came, and each of the others a row
            if self.variant == "released" or least <= allowed * self.total + 1e-6:
                self.part, self.merging = came, ratio >= self.least
                return merged(rows, order, gone)
            if layer < 0:
                raise ValueError(self._advice(least))
        assert rows.attention is not None
        self.after.clear()
        return going_on(rows, best_of_video(rows, rows.attention[-self.asking :, video].mean(0), fits))

    def _advice(self, needed: float) -> str:
        share = needed / self.layers / self.total
        return (
            f"FrameFusion reads at least {needed:.0f} tokens of this video of {self.total} in {self.layers} layers "
            f"together, which is more than the budget. Set keep to at least {math.ceil(1000 * share) / 1000}, or "
            f"tokens to {math.ceil(share * self.shown - 1e-6)}, or lower similarity, to merge more."
        )


def likeness(rows: Rows) -> tuple[Tensor, Tensor]:
    """The m places of rows in frames, by video, by place in the frame, then by time, and the cosine of each with the
    one before at the same place of the frame, -2 where there is none: [m] and [m].
    """
    assert rows.in_frame is not None
    place = rows.video_id * (rows.in_frame.max() + 1) + rows.in_frame
    order = (rows.in_frame >= 0).nonzero()[:, 0]
    order = order[place[order].argsort(stable=True)]
    like = torch.full(order.shape, -2.0, device=order.device)
    for some in torch.arange(1, max(1, len(order))).split(at_once(4 * rows.states.shape[1], order.device)):
        pair = (rows.states[order[some - back]].float() for back in (0, 1))
        like[some] = functional.cosine_similarity(*pair, dim=-1)
    like[1:][place[order].diff() != 0] = -2.0
    return order, like


def merged(rows: Rows, order: Tensor, gone: Tensor) -> Rows:
    """The rows without those of `order` [m] that are `gone` [m], each run of which is in the mean of the one before."""
    into, stays = (~gone).cumsum(0) - 1, order[~gone]
    total = rows.states[stays].float().index_add_(0, into[gone], rows.states[order[gone]].float())
    states = rows.states.clone()
    states[stays] = (total / torch.bincount(into, minlength=len(stays))[:, None]).to(states.dtype)
    going = torch.ones_like(rows.index, dtype=torch.bool)
    going[order[gone]] = False
    return replace(rows, states=states).take(going.nonzero()[:, 0])
