"""Literal versions of what KV compressors compute: loops over heads, queries and tokens, in float64.

Letters: h query heads, G key heads, n keys, Q queries, L layers, E head width.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor


def weights(query: Tensor, key: Tensor, seen: int) -> list[float]:
    """Softmax of one query [E] over the first `seen` keys [n,E]; zero at the others."""
    scores = [math.exp(float(query @ key[j]) / math.sqrt(len(query))) for j in range(seen)]
    return [score / sum(scores) for score in scores] + [0.0] * (len(key) - seen)


def received(query: Tensor, key: Tensor, causal: bool) -> Tensor:
    """Attention each key [G,n,E] receives from the queries [h,Q,E], averaged over its group's heads: [G,n]."""
    heads, queries, _ = query.shape
    groups, keys, _ = key.shape
    total = torch.zeros(groups, keys, dtype=torch.float64)
    for head in range(heads):
        group = head * groups // heads
        for i in range(queries):
            seen = keys - queries + i + 1 if causal else keys
            total[group] += torch.tensor(weights(query[head, i], key[group], seen), dtype=torch.float64)
    return total / (heads // groups)


def snapkv(query: Tensor, key: Tensor, window: int, kernel: int, count: int) -> list[list[int]]:
    """Rows that SnapKV keeps of a chunk, per key head: the window, and the best of the smoothed rest."""
    scores = received(query[:, -window:], key, causal=True)
    keys = key.shape[1]
    kept = []
    for group in range(len(key)):
        smooth = []
        for j in range(keys - window):
            near = range(max(0, j - kernel // 2), min(keys - window, j + kernel // 2 + 1))
            smooth.append(sum(float(scores[group, m]) for m in near) / len(near))
        best = sorted(range(keys - window), key=lambda j: -smooth[j])[: count - window]
        kept.append(sorted(best) + list(range(keys - window, keys)))
    return kept


def layer_shares(scores: Tensor, share: float, paper: bool) -> list[float]:
    """AdaReTaKe's share of each layer, from the scores [L,n] (eqs. 11-16; or one more hit for every layer)."""
    layers, keys = scores.shape
    flat = sorted(((float(scores[i, j]), i) for i in range(layers) for j in range(keys)), reverse=True)
    hits = [0] * layers
    for _, layer in flat[: int(max(1, share * keys) * layers)]:
        hits[layer] += 1
    if not paper:
        return [layers * share * (1 + hit) / (layers + sum(hits)) for hit in hits]
    over = [max(hit / sum(hits) - 0.01, 0.0) for hit in hits]
    return [layers * share * (part / sum(over) * (1 - 0.01 * layers) + 0.01) for part in over]


def chunk_shares(chunks: list[Tensor], share: float) -> list[float]:
    """AdaReTaKe's share of each chunk [frames,P,D] (eqs. 8-9, with the factor that keeps the mean), at most 1."""
    changes = []
    for chunk in chunks:
        pairs = []
        for one, other in pairwise(chunk):
            cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(one, other, strict=True)]
            pairs.append(1 - sum(cosines) / len(cosines))
        changes.append(sum(pairs) / len(pairs))
    return [min(1.0, share * len(chunks) * change / sum(changes)) for change in changes]


def streaming(length: int, chunk: int, sinks: int, limit: int) -> list[int]:
    """Which of a video's tokens are left after reading them chunk by chunk: the first and the latest."""
    kept: list[int] = []
    for start in range(0, length, chunk):
        kept += range(start, min(start + chunk, length))
        while len(kept) > limit:
            del kept[sinks]
    return kept
