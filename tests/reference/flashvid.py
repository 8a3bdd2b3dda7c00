"""FlashVID token by token (arXiv 2602.08024, section 3), with an exact budget."""

import math
from dataclasses import dataclass

from tests.reference.clustering import density_peaks
from tests.reference.vectors import Vector, Video, by_remainder, cosine, distance, dot, evenly, mean, runs

NEIGHBOURS = 7
Token = tuple[int, int]


@dataclass
class Settings:
    """Those of the class, by the same names."""

    segments: int = 8
    change: float = 0.9
    selected: float = 0.7
    alike: float = 0.8
    events: bool = True


def parted(video: Video, settings: Settings) -> list[list[int]]:
    """The frames of each segment: cut at changes below the threshold, and at more while there are too few."""
    whole = [mean(frame) for frame in video]
    alike = {t: cosine(whole[t - 1], whole[t]) for t in range(1, len(video))}
    apart = {t for t in alike if alike[t] < settings.change}
    for t in sorted(alike, key=lambda t: alike[t]):
        if len(apart) < settings.segments - 1:
            apart.add(t)
    return runs(list(range(len(video))), apart)


def far_apart(frame: list[Vector], weight: list[float], count: int) -> list[int]:
    """Places one by one, each the one whose nearest of those before is the farthest."""
    kept: list[int] = []
    for _ in range(count):
        left = [p for p in range(len(frame)) if p not in kept]
        beside = kept or list(range(len(frame)))
        far = {
            p: min((weight[p] * (1 - cosine(frame[q], frame[p])) for q in beside if q != p), default=0.0) for p in left
        }
        kept.append(max(left, key=lambda p: (far[p], -p)))
    return kept


def joined(video: Video, part: list[int], taken: set[Token], least: int, settings: Settings) -> dict[Token, Token]:
    """Which token of the frame before each one joins, the most similar first, while `least` of the segment are left."""
    found = []
    for t in part[1:]:
        before = [p for p in range(len(video[t])) if (t - 1, p) not in taken]
        for p in (p for p in range(len(video[t])) if (t, p) not in taken and before):
            q = max(before, key=lambda q: cosine(video[t - 1][q], video[t][p]))
            found.append((cosine(video[t - 1][q], video[t][p]), (t, p), (t - 1, q)))
    found = sorted((each for each in found if each[0] > settings.alike), key=lambda each: -each[0])
    return {token: to for _, token, to in found[: len(part) * len(video[0]) - least]}


def clusters(trees: dict[int, Vector], count: int) -> dict[int, Vector]:
    """Density peaks of the trees of a frame, each the mean of those nearest to it."""
    among = sorted(trees)
    tokens = [trees.get(p, []) for p in range(max(among, default=-1) + 1)]
    centres = density_peaks(tokens, among, count, min(NEIGHBOURS, len(among))) if count else []
    groups: dict[int, list[Vector]] = {c: [trees[c]] for c in centres}
    for p in among:
        if centres and p not in centres:
            groups[min(centres, key=lambda c: distance(trees[p], trees[c]))].append(trees[p])
    return {c: mean(group) for c, group in groups.items()}


def flashvid(video: Video, score: list[list[float]], wanted: int, settings: Settings) -> tuple[list[int], list[Vector]]:
    """The flat places kept, and their vectors."""
    places, kept = len(video[0]), evenly(wanted, len(video), len(video[0]))
    chosen = [math.ceil(n * settings.selected) for n in kept]
    out: dict[int, Vector] = {}
    trees: list[dict[int, Vector]] = []
    shares: list[float] = []
    for part in parted(video, settings):
        event = mean([token for t in part for token in video[t]])
        taken: set[Token] = set()
        for t in part:
            weight = [
                s * (max(0.0, dot(x, event)) if settings.events else 1.0)
                for s, x in zip(score[t], video[t], strict=True)
            ]
            taken |= {(t, p) for p in far_apart(video[t], weight, chosen[t])}
        out |= {t * places + p: video[t][p] for t, p in taken}
        parent = joined(video, part, taken, sum(kept[t] for t in part), settings)
        groups: dict[Token, list[Vector]] = {}
        for t in part:
            for p in range(places):
                root = (t, p)
                while root in parent:
                    root = parent[root]
                groups.setdefault(root, []).append(video[t][p])
        groups = {root: group for root, group in groups.items() if root not in taken}
        others = sum(kept[t] - chosen[t] for t in part)
        for t in part:
            trees.append({p: mean(group) for (frame, p), group in groups.items() if frame == t})
            shares.append(len(trees[-1]) * (others / max(1, len(groups))))
    counts = by_remainder(shares, sum(kept) - sum(chosen), [len(some) for some in trees])
    for t, count in enumerate(counts):
        out |= {t * places + p: vector for p, vector in clusters(trees[t], count).items()}
    return sorted(out), [out[s] for s in sorted(out)]
