"""DART: after an early layer, the video rows go on that are least like a few pivots.

Letters: G key heads, E head width, D width, m video rows. Source: DART (arXiv 2502.11494), section 3, and its released
code for Qwen2-VL as a fork has it, which was run beside ours.
"""

from typing import Literal

import torch
from torch.nn import functional

from langdc.interfaces import Rows
from langdc.layercompressors.base import OneLayer, going_on, layercompressors
from langdc.registry import check_choice

Variant = Literal["fixed", "released"]


@layercompressors.register("dart")
class Dart(OneLayer):
    """Before layer `layer` keep a few rows of the video as pivots, and those least like pivots.

    Pivots are the `pivots` rows of the video, and as many of the question, that have the largest keys (sum of absolute
    values, rotated) in the layer before. For each pivot in turn the rows go on that are least like it (cosine after the
    model's last norm) and not yet taken, as many for each. `layer`: by default 2 of 32. `variant`: "released" takes the
    pivots in the order of a Python set of their row numbers, and keeps a multiple of their number; "fixed", the
    default, takes video then question, the largest first, and meets the budget. By eager attention, the release lets
    the rows that are left attend to later ones; here they never do.
    """

    paper = "arXiv 2502.11494"
    needs = frozenset({"keys", "normed"})

    def __init__(
        self,
        keep: float | None = None,
        tokens: int | None = None,
        variant: Variant = "fixed",
        layer: int | None = None,
        pivots: int = 4,
    ) -> None:
        super().__init__(keep, tokens, layer)
        check_choice("dart variant", variant, Variant)
        if pivots < 1:
            raise ValueError(f"pivots={pivots}: give at least 1; 4 is usual.")
        self.variant, self.pivots = variant, pivots

    def keep(self, layer: int, rows: Rows) -> Rows:
        assert rows.keys is not None and rows.normed is not None
        video, question, left = rows.video, rows.question, self.left[0]
        size = rows.keys.float().abs().sum((0, 2))
        own = video[size[video].argsort(descending=True, stable=True)[: min(self.pivots, left)]]
        asked = question[size[question].argsort(descending=True, stable=True)[: self.pivots]]
        pivots = torch.cat([own, asked])
        if self.variant == "released":
            pivots = torch.tensor(list(set(pivots.tolist())), device=pivots.device)
        each, rest = divmod(left - len(own), len(pivots))
        free = torch.isin(video, own, invert=True)
        units = functional.normalize(rows.normed.float(), dim=-1)
        for number, like in enumerate(units[pivots] @ units[video].T):
            count = each + (number < rest and self.variant == "fixed")
            order = like.masked_fill(~free, torch.inf).argsort(stable=True)
            free[order[:count]] = False
        return going_on(rows, video[~free])
