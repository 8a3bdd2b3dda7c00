"""What `benchmarks/compressors.py` compares with: the methods as straightforwardly as published code has them.

Float32, vectorised over tokens where that code is, with the same copies, loops over frames and whole matrices of
attention. Written from the formulas; results agree with `langdc` (tests/test_benchmarks.py).

Letters: T frames, P places of a frame, C width, h query heads, G key heads, Q queries, n keys, E head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


def vidcom2(values: Tensor, keep: float) -> Tensor:
    """The tokens [N,C] that VidCom2's released rule keeps of [T,P,C]; one top-k per frame."""
    frames, places = values.shape[:2]
    flat = values.flatten(0, 1)
    quiet = flat.var(0, unbiased=False).topk(flat.shape[1] // 2, largest=False).indices
    unit = F.normalize(flat[:, quiet].unflatten(0, (frames, places)), dim=-1)
    of_frame = unit.mean(1, keepdim=True)
    to_video = _kernels(unit, unit.mean((0, 1), keepdim=True))
    score = to_video + _kernels(unit, of_frame)
    unusual = -to_video.mean(1)
    lead = F.softmax((unusual - unusual.max()) / 0.01, dim=0)
    counts = ((keep * (1 + lead - lead.mean())).clamp(max=1) * places).round().long().clamp(min=1).tolist()
    kept = [score[t].topk(n, largest=False).indices.sort().values + t * places for t, n in enumerate(counts)]
    return values.flatten(0, 1)[torch.cat(kept)]


def _kernels(unit: Tensor, centre: Tensor) -> Tensor:
    distance = ((unit - centre) ** 2).sum(-1)
    return torch.stack([torch.exp(-distance / (2 * width)) for width in WIDTHS]).sum(0)


def dpselect(values: Tensor, frames: int, window: int = 3) -> Tensor:
    """The `frames` moments of each place that DPSelect keeps of [T,P,C]: [frames,P,C]; one pass per place for peaks."""
    change = 1 - F.cosine_similarity(values[:-1], values[1:], dim=-1)
    change = torch.cat([torch.ones_like(change[:1]), change]).T.contiguous()
    best = F.max_pool1d(change[:, None], window, 1, window // 2, return_indices=True)[1][:, 0]
    for place, of_place in enumerate(best):
        found = of_place.unique()
        change[place, found[of_place[found] == found]] += 2
    moments = change.topk(frames, dim=1).indices.sort(1).values.T
    return values.gather(0, moments[..., None].expand(-1, -1, values.shape[2]))


def ma_lmm(values: Tensor, frames: int) -> Tensor:
    """MA-LMM's bank of [T,P,C] with `frames` slots per place; every merge looks at all pairs again."""
    bank, sizes = values.clone(), values.new_ones(values.shape[:2])
    while len(bank) > frames:
        alike = F.cosine_similarity(bank[:-1], bank[1:], dim=-1)
        first = alike.argmax(0, keepdim=True)
        stay = torch.arange(len(bank) - 1, device=bank.device)[:, None].repeat(1, bank.shape[1])
        stay += (stay > first).long()
        whole = stay[..., None].expand(-1, -1, bank.shape[2])
        gone = (first + 1)[..., None].expand(-1, -1, bank.shape[2])
        weight, other = sizes.gather(0, stay), sizes.gather(0, first + 1)
        total = bank.gather(0, whole) * weight[..., None]
        total.scatter_add_(0, first[..., None].expand_as(gone), bank.gather(0, gone) * other[..., None])
        sizes = weight.scatter_add(0, first, other)
        bank = total / sizes[..., None]
    return bank


def attention_scores(query: Tensor, key: Tensor) -> Tensor:
    """How much attention each key [1,G,n,E] gets from queries [1,h,Q,E]: [n]; the whole matrix [h,Q,n] at once.

    PivotKV's score where the queries are the chunk's own, AdaReTaKe's where they are the question's.
    """
    groups = query.shape[1] // key.shape[1]
    every = key[:, :, None].expand(-1, -1, groups, -1, -1).reshape(1, query.shape[1], *key.shape[2:])
    weights = F.softmax(query @ every.transpose(2, 3) / query.shape[-1] ** 0.5, dim=-1, dtype=torch.float32)
    return weights[0].to(query.dtype).sum(1).unflatten(0, (-1, groups)).mean(1).mean(0)
