"""Literal versions of what layer compressors compute: loops over heads, rows and channels, in float64.

Rows are lists of floats; `video` and `question` are places among the rows of a prompt.
Letters: h query heads, G key heads, n rows, E head width.
"""

import math

from torch import Tensor

from tests.reference.clustering import density_peaks
from tests.reference.kv import weights
from tests.reference.vectors import Vector, best, cosine, distance, dot, mean, mix


def paid(query: Tensor, key: Tensor, row: int) -> list[float]:
    """The attention that a row pays to all, averaged over the heads of queries [h,n,E] and keys [G,n,E]."""
    heads, groups = len(query), len(key)
    return mean([weights(query[h, row], key[h * groups // heads], row + 1) for h in range(heads)])


def by_last_row(query: Tensor, key: Tensor, video: list[int], count: int) -> list[int]:
    """FastV and each stage of PyramidDrop: the rows of the video that the last row attends to most."""
    attention = paid(query, key, query.shape[1] - 1)
    return best({row: attention[row] for row in video}, count)


def raters(rows: list[Vector], video: list[int], question: list[int]) -> list[int]:
    """SparseVLM's raters: rows of the question that the video likes more than it likes them on average."""
    like = dict.fromkeys(question, 0.0)
    for v in video:
        products = {q: dot(rows[v], rows[q]) for q in question}
        total = sum(math.exp(one - max(products.values())) for one in products.values())
        for q in question:
            like[q] += math.exp(products[q] - max(products.values())) / total / len(video)
    return [q for q in question if like[q] > sum(like.values()) / len(like)] or question


def first(score: dict[int, float], count: int) -> list[int]:
    """The `count` keys of highest score; of equals the first in the dict."""
    return sorted(score, key=lambda key: -score[key])[:count]


def sparsevlm(
    states: list[Vector], query: Tensor, key: Tensor, video: list[int], asking: list[int], count: int
) -> tuple[list[int], dict[int, Vector]]:
    """One stage of SparseVLM: the rows kept as they are, and the means of clusters of others by their centres."""
    attention = [paid(query, key, row) for row in asking]
    score = {row: sum(one[row] for one in attention) / len(asking) for row in video}
    kept = best(score, count)
    dropped = [row for row in video if row not in kept]
    some = sorted(dropped, key=lambda row: -score[row])[: int(0.3 * len(dropped)) + 1]
    clusters = len(some) // 10 + 1
    centres = density_peaks(states, some, clusters, clusters, first)
    groups: dict[int, list[Vector]] = {centre: [] for centre in centres}
    for row in some:
        own = row if row in centres else min(centres, key=lambda c: distance(states[row], states[c]))
        groups[own].append(states[row])
    return kept, {centre: mean(group) for centre, group in groups.items()}


def halved(states: list[Vector], query: Tensor, key: Tensor, video: list[int], count: int) -> dict[int, Vector]:
    """HoliTom inside the model: what the rows kept become, as the others are merged in by halves, one by one."""
    kept = by_last_row(query, key, video, count)
    merged = {row: states[row] for row in kept}
    for row in video:
        if row not in kept:
            into = max(kept, key=lambda target: cosine(states[row], states[target]))
            merged[into] = mix(0.5, merged[into], states[row])
    return merged


def dart(
    normed: list[Vector], key: Tensor, video: list[int], question: list[int], count: int, pivots: int, released: bool
) -> list[int]:
    """DART: pivots with large keys, and for each the rows that are least like it."""
    size = [float(sum(abs(float(x)) for head in key for x in head[row])) for row in range(key.shape[1])]
    largest = {row: sorted(rows, key=lambda r: -size[r]) for row, rows in enumerate((video, question))}
    own = largest[0][: min(pivots, count)]
    order = own + largest[1][:pivots]
    if released:
        order = list(set(order))
    kept, (each, rest) = list(own), divmod(count - len(own), len(order))
    for number, pivot in enumerate(order):
        unlike = {row: -cosine(normed[pivot], normed[row]) for row in video if row not in kept}
        kept += best(unlike, each if released or number >= rest else each + 1)
    return sorted(kept)


def framefusion(
    rows: dict[int, Vector],
    drift: list[Vector],
    importance: list[float],
    places: list[int],
    settings: tuple[float, float, float],
    layers: int,
) -> list[dict[int, Vector]]:
    """FrameFusion: the rows of a video that each call lets go on, and what they became. `places`: of rows in a frame;
    `drift`: what a layer adds to each; `settings`: the budget, the least cosine, and the least part that is merged.
    """
    share, similarity, least = settings
    left, found, merging = share * layers * len(rows), [], True
    for layer in range(-1, layers - 1):
        if layer >= 0:
            left -= len(rows)
            rows = {row: mix(0.5, [2 * x for x in rows[row]], [2 * x for x in drift[row]]) for row in rows}
        following = layers - 1 - layer
        fits, last = min(len(rows), max(1, math.floor(left / following + 1e-6))), True
        like, before = {}, {}
        for row in sorted(rows):
            if places[row] in before:
                like[row] = cosine(rows[before[places[row]]], rows[row])
            before[places[row]] = row
        gone = [row for row in like if like[row] >= similarity]
        if merging and len(gone) >= len(rows) - left / following:
            gone = best(like, len(rows) - fits)
        elif merging and left - (len(rows) - len(gone)) >= following - 1:
            last, merging = False, len(gone) >= least * len(rows)
        else:
            rows, gone = {row: rows[row] for row in best({row: importance[row] for row in rows}, fits)}, []
        groups: dict[int, list[Vector]] = {}
        for row in sorted(rows):
            before[places[row]] = before[places[row]] if row in gone else row
            groups.setdefault(before[places[row]], []).append(rows[row])
        rows = {row: mean(group) for row, group in groups.items()}
        found.append(rows)
        if last:
            break
    return found
