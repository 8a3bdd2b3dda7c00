"""HoliTom inside the language model: rows that the last row hardly attends to are merged into those it does.

Letters: D width, m video rows, k of them kept. Source: HoliTom (arXiv 2505.21334), section 3.4, and its released code,
which was run beside ours.
"""

from dataclasses import replace

import torch
from torch import Tensor

from langdc.devices import at_once
from langdc.interfaces import Rows
from langdc.layercompressors.base import OneLayer, best_of_video, going_on, layercompressors


@layercompressors.register("holitom_inner")
class HoliTomInner(OneLayer):
    """Before layer `layer` keep the rows with the most attention of the last row, and merge the others into them.

    Attention is that of the layer before, averaged over heads; each other row goes into the kept one that it is most
    like (cosine). `layer`: by default 18 of 28. As released, a row is merged as (kept + row) / 2, one after the other,
    so the last one weighs half. The release runs by sdpa alone, and lets the layer before attend in both directions;
    here it is causal, as the model was trained. With `holitom_outer` before the language model it is the whole method.
    """

    paper = "arXiv 2505.21334"
    needs = frozenset({"last"})
    usual = (18, 28)

    def keep(self, layer: int, rows: Rows) -> Rows:
        assert rows.attention is not None
        best = best_of_video(rows, rows.attention[0, rows.video], self.left[0])
        others = torch.ones(len(rows.index), dtype=torch.bool, device=best.device)
        others[best] = False
        dropped = rows.video[others[rows.video]]
        states = rows.states.clone()
        states[best] = halved_into(rows.states[best], rows.states[dropped])
        return going_on(replace(rows, states=states), best)


def halved_into(kept: Tensor, others: Tensor) -> Tensor:
    """Rows `kept` [k,D], each with the `others` [m,D] that are most like it merged in, one by one, by halves."""
    if not len(others):
        return kept
    units = torch.nn.functional.normalize(kept.float(), dim=-1)
    parts = others.split(at_once(4 * len(kept), kept.device))  # all pairs at once would be many
    into = torch.cat([(part.float() @ units.T).argmax(1) for part in parts])
    count = torch.bincount(into, minlength=len(kept))
    order = into.argsort(stable=True)  # by target, then in their order
    place = torch.arange(len(others), device=into.device) - (count.cumsum(0) - count)[into[order]]
    weight = torch.exp2((place - count[into[order]]).double()).float()
    merged = kept.float() * torch.exp2(-count.double()).float()[:, None]
    merged.index_add_(0, into[order], others[order].float() * weight[:, None])
    return merged.to(kept.dtype)
