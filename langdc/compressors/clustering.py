"""Grouping tokens of many frames at once: density peaks are centres, the rest is merged into the nearest.

Letters: B groups (frames or windows), P places of a group, K centres, C width.
Source: density peaks by nearest neighbours (DPC-KNN), as FastVID (arXiv 2503.11187) and HoliTom (2505.21334) use it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from langdc.compressors.base import best_of_each, frames_at_once


def distances(values: Tensor) -> Tensor:
    """Euclidean distances within each group [B,P,C] divided by sqrt(C): [B,P,P], in float32."""
    values = values.float()
    apart = torch.cdist(values, values) / values.shape[-1] ** 0.5
    apart.diagonal(dim1=1, dim2=2).zero_()  # cdist rounds there
    return apart


def peaks(apart: Tensor, among: Tensor, count: Tensor, neighbours: Tensor, most: int, as_topk: bool = False) -> Tensor:
    """The `count` [B] best centres of each group as a mask [B,P]: dense, and far from anything denser.

    `apart` [B,P,P]: distances; `among` [B,P]: the candidates; `neighbours` [B]: how many of the nearest, itself
    included, make the density, at most `most`. Of equals the earlier wins; with `as_topk` whichever torch.topk gives,
    as upstream.
    """
    nobody = ~among[:, None, :]
    nearest = apart.masked_fill(nobody, torch.inf).topk(min(most, apart.shape[-1]), -1, False).values
    counted = (torch.arange(nearest.shape[-1], device=apart.device) < neighbours[:, None])[:, None] & nearest.isfinite()
    squares = torch.where(counted, nearest, 0.0).square().sum(-1) / counted.sum(-1).clamp(min=1)
    density = (-squares).exp()
    pairs = among[:, :, None] & among[:, None, :]
    farthest = apart.masked_fill(~pairs, 0.0).amax((1, 2))[:, None, None]
    denser = (density[:, None, :] > density[:, :, None]) & ~nobody
    far = torch.where(denser, apart, farthest).amin(-1)
    score = far * density
    return _by_topk(score, among, count) if as_topk else best_of_each(score.masked_fill(~among, -torch.inf), count)


def _by_topk(score: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """The `count` best candidates, each group as torch.topk orders them when it is given no others."""
    chosen = torch.zeros_like(among)
    kinds = torch.stack([among.sum(1), count], 1)
    for size, wanted in kinds.unique(dim=0).tolist():
        rows = (kinds == kinds.new_tensor([size, wanted])).all(1).nonzero()[:, 0]
        places = among[rows].nonzero()[:, 1].view(len(rows), size)
        best = score[rows].gather(1, places).topk(wanted, dim=1).indices
        chosen[rows[:, None], places.gather(1, best)] = True
    return chosen


def listed(mask: Tensor, most: int) -> Tensor:
    """The indices of true entries of each row [B,P], padded with others to `most` [B,K], as many as a row has."""
    return mask.long().argsort(dim=1, descending=True, stable=True)[:, :most]


def sums(values: Tensor, place: Tensor, nearest: Tensor, joining: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [B,K,C] in float32, and numbers [B,K], of tokens `joining` [B,P] whose `nearest` [B,P] is `place` [B,K]."""
    weight = ((nearest[:, None] == place[..., None]) & joining[:, None]).float()
    return weight @ values.float(), weight.sum(-1)


def mixed(own: Tensor, total: Tensor, number: Tensor, share: Tensor | float) -> Tensor:
    """`share` of centres `own` [...,C], the rest the mean of `number` others with sum `total`; unchanged if none."""
    number = number[..., None]
    return torch.where(number > 0, share * own + (1 - share) * total / number.clamp(min=1), own)


def merged(
    values: Tensor, apart: Tensor, among: Tensor, centres: Tensor, counts: Tensor, share: float | None
) -> Tensor:
    """The centres of groups [B,P,C] in their order, each mixed with the tokens nearest to it: [K,C] in float32.
    `counts` [B], on the CPU: how many centres each group has, so that nothing waits for the device. `share`: the
    centre's own; None: that of any other.
    """
    most = int(counts.max())
    place = listed(centres, most)
    nearest = apart.masked_fill(~centres[:, None, :], torch.inf).argmin(-1)
    total, number = sums(values, place, nearest, among & ~centres)
    own = values.gather(1, place[..., None].expand_as(total)).float()
    real = (torch.arange(most) < counts[:, None]).flatten().nonzero()[:, 0]
    part = share if share is not None else 1 / (number[..., None] + 1)
    return mixed(own, total, number, part).flatten(0, 1)[real.to(values.device, non_blocking=True)]


def thinned(
    values: Callable[[Tensor], Tensor],
    among: Tensor,
    count: Tensor,
    step: int,
    neighbours: int,
    share: float | None,
    as_topk: bool,
    few: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Density peaks among some places of B groups, `count` [B] each (on the CPU), as a mask [B,P]; and what they are
    when merged, in parts [n,C]. `values` gives [b,P,C] for `step` groups [b]; the others as in `peaks` and `merged`.
    `few`: no more neighbours than peaks make a density, as released code has it.
    """
    kept, parts = torch.zeros_like(among), []
    having = count.nonzero()[:, 0]
    for some in having.split(step) if len(having) else ():
        group, counts = values(some), count[some]
        some, wanted = (part.to(among.device, non_blocking=True) for part in (some, counts))
        apart, near = distances(group), wanted if few else among[some].sum(1)
        chosen = peaks(apart, among[some], wanted, near.clamp(max=neighbours), neighbours, as_topk)
        kept[some] = chosen
        parts.append(merged(group, apart, among[some], chosen, counts, share))
    return kept, parts


def changes(values: Tensor, segments: int, change: float) -> tuple[Tensor, Tensor, Tensor]:
    """Means of frames [T,C] of [T,P,C]; how like the one before each is [T-1], on the CPU; and where a video is cut
    [T-1]: at the `segments` - 1 largest changes and at every similarity below `change`.
    """
    means = torch.cat([frames.float().mean(1) for frames in values.split(frames_at_once(values))])
    whole = torch.nn.functional.normalize(means, dim=-1)
    alike = (whole[:-1] * whole[1:]).sum(1).cpu()
    apart = alike < change
    apart[alike.topk(min(segments - 1, len(alike)), largest=False).indices] = True
    return means, alike, apart
