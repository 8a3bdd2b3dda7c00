"""DyCoke's second stage: a token of a reply reads the keys of a video that it attends to.

Letters: h query heads, G key heads, E head width, K keys, n keys read.
Source: DyCoke (arXiv 2411.15024), section 3.3, by its released code, which was run beside ours.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from langdc.attention import received_attention
from langdc.kvcompressors.base import BudgetedKV, kvcompressors
from langdc.registry import check_choice
from langdc.types import Plan

Variant = Literal["fixed", "released"]
ALIKE = 0.9
"""The cosine of the attention of two tokens in turn from which on the second one reads what the first one did."""


@kvcompressors.register("dycoke_decoding")
class DyCokeDecoding(BudgetedKV):
    """While a reply is written, layers from `layer` on read the keys of a video that the layer before attends to most.

    Each token of the reply chooses anew, by its attention averaged over heads, among all keys; where that is like the
    last token's (cosine of 0.9 or more) the choice stays. Keys that are not read are set aside and may come back, so no
    memory is freed. Such replies are written one token after the other, without a recorded graph. `keep`: the share of
    the video's keys that a token reads, on average over layers, of which those before `layer` read all; ValueError if
    they alone read more. `layer`: by default as deep as the release's 3 of 28. With `dycoke` before the language model
    this is the whole method.

    `variant`: "released" takes `keep` for the share in the layers from `layer` on, 1 - dycoke_p. Where attention is
    like the last token's, these read all keys, since the choice is cleared before each token; the device is waited for
    to know. The last two rows of a video are always read: its length is off by one and leaves out the newline of
    LLaVA-OneVision. "fixed", the default, has none of that. In no variant is the first token of a reply compared with
    the last one of another reply, as it is in the release.
    """

    decoding = True
    paper = "arXiv 2411.15024"

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        layer: int | None = None,
    ) -> None:
        super().__init__(keep, tokens)
        check_choice("dycoke_decoding variant", variant, Variant)
        self.released, self.layer = variant == "released", layer

    def check(self, layers: int) -> None:
        first, keep = self._first_layer(layers), self.budget.keep
        if not 1 <= first < layers:
            raise ValueError(
                f"layer={first} of {layers}: the layer before it reads all keys and says which ones it and those after "
                f"it read. Give one of 1 to {layers - 1}."
            )
        if keep is not None and not self.released and keep * layers <= first:
            raise ValueError(
                f"{first} of {layers} layers read all keys of a video; keep={keep:.4g} cannot be met. Set keep to more "
                f"than {math.ceil(first / layers * 1000) / 1000}, or layer to less."
            )

    def begin(self, plan: Plan) -> None:
        super().begin(plan)
        if not self.active:
            return
        self.check(plan.layers)
        rows = torch.cat([torch.arange(chunk.rows.start, chunk.rows.stop)[chunk.video] for chunk in plan.chunks])
        rows = rows[:-2] if self.released else rows
        others = torch.ones(len(plan.embeds), dtype=torch.bool)
        others[rows] = False
        device = plan.embeds.device
        self._video = rows.to(device, non_blocking=True)
        self._others = others.nonzero()[:, 0].to(device, non_blocking=True)
        self._first = self._first_layer(plan.layers)
        self._count = self._count_of(len(rows), plan.layers)
        self._before: tuple[Tensor, Tensor] | None = None
        self._rows: Tensor | None = None

    def _first_layer(self, layers: int) -> int:
        return max(1, round(3 * layers / 28)) if self.layer is None else self.layer

    def _count_of(self, video: int, layers: int) -> int:
        """How many of the video's keys are read in the layers from the first on."""
        if self.released:
            return int(video * (1 - (1 - self.share)))  # with the rounding of 1 - dycoke_p
        count = int((self.share * layers - self._first) * video / (layers - self._first) + 1e-9)
        if count < 1:
            least = (self._first + (layers - self._first) / video) / layers
            raise ValueError(
                f"{self._first} of {layers} layers read all {video} keys of the video, which is more than the share of "
                f"{self.share:.3g} on average over layers. Set {self.budget.least(least, len(self.plan.embeds))}, or "
                "layer to less."
            )
        return count

    def step(self, layer: int, query: Tensor, key: Tensor) -> Tensor | None:
        if layer == self._first - 1:
            self._rows = self._chosen(received_attention(query, key).mean(0))
        return self._rows if layer >= self._first else None

    def _chosen(self, attention: Tensor) -> Tensor | None:
        """What the next layers read [n], by the attention [K] that a token pays; None: all."""
        video, others = (rows.to(attention.device) for rows in (self._video, self._others))
        written = torch.arange(len(video) + len(others), len(attention), device=attention.device)
        attention, before = attention[video], self._before
        best = video[attention.topk(self._count).indices]
        if before is not None:
            alike = functional.cosine_similarity(attention, before[0], dim=0) >= ALIKE
            if not self.released:
                best = torch.where(alike, before[1], best)
            elif alike:
                best = video
        self._before = attention, best
        return torch.cat([others, best, written]).sort().values
