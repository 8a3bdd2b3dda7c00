"""HoliTom's outer part, window by window (arXiv 2505.21334, sections 3.2-3.3), with an exact budget or as released."""

import math
from dataclasses import dataclass
from itertools import pairwise, product

from tests.reference.clustering import absorbed, density_peaks
from tests.reference.vectors import Pick, Vector, Video, best, best_by_topk, by_remainder, cosine, mean, runs


@dataclass
class Settings:
    """Those of the class, by the same names."""

    still: float = 0.8
    own: float = 0.6
    context: float = 0.0
    neighbours: int = 7
    max_window: int = 1024


def still_places(alike: list[list[float]], window: list[int], least: float) -> list[int]:
    """The places that are more than `least` like the frame before in all of a window; none in a single frame."""
    if len(window) == 1:
        return []
    return [p for p in range(len(alike[0])) if all(alike[t][p] > least for t in window[1:])]


def like_before(video: Video) -> list[list[float]]:
    """How like the frame before each place of each frame is; nothing is before the first."""
    later = [[cosine(a, b) for a, b in zip(one, other, strict=True)] for one, other in pairwise(video)]
    return [[-1.0] * len(video[0]), *later]


def windows(alike: list[list[float]], settings: Settings) -> list[list[int]]:
    """Of all ways to cut a video, the one that saves most tokens: a still place saves all but one of its frames.

    Tries every way, so that videos must be short; of equals, the one whose last windows are the shortest.
    """
    found, most = [], -1
    for parted in product([False, True], repeat=len(alike) - 1):
        parts = runs(list(range(len(alike))), {t for t, new in enumerate(parted, 1) if new})
        if max(len(part) for part in parts) > settings.max_window:
            continue
        saved = sum(len(still_places(alike, part, settings.still)) * (len(part) - 1) for part in parts)
        lengths = [len(part) for part in parts][::-1]
        if saved > most or (saved == most and lengths < [len(part) for part in found][::-1]):
            found, most = parts, saved
    return found


def thinned(tokens: list[Vector], among: list[int], count: int, settings: Settings, pick: Pick) -> dict[int, Vector]:
    """`count` density peaks of some tokens, with what they took in."""
    if not count:
        return {}
    centres = density_peaks(tokens, among, count, min(count, settings.neighbours), pick)
    return absorbed(tokens, among, centres, settings.own)


@dataclass
class Cut:
    """A video's windows of frames, the still places of each window, and the other places of each frame."""

    windows: list[list[int]]
    still: list[list[int]]
    moving: list[list[int]]

    def sizes(self) -> list[int]:
        """How many there are to choose from: of each window, then of each frame."""
        return [len(some) for some in self.still + self.moving]


def cut(video: Video, settings: Settings) -> Cut:
    """The windows of a video."""
    alike = like_before(video)
    parts = windows(alike, settings)
    still = [still_places(alike, part, settings.still) for part in parts]
    every = range(len(video[0]))
    return Cut(
        parts,
        still,
        [[p for p in every if p not in some] for part, some in zip(parts, still, strict=True) for _ in part],
    )


def groups(
    video: Video, score: list[list[float]], found: Cut, counts: list[int], settings: Settings, pick: Pick = best
) -> list[dict[int, Vector]]:
    """What stays, by flat place: of each window what is still, at its first frame; then, of each of its frames, the
    salient tokens and the density peaks of the others.
    """
    places, kept = len(video[0]), []
    for i, part in enumerate(found.windows):
        once = [mean([video[t][p] for t in part]) for p in range(places)]
        kept.append(
            {part[0] * places + p: v for p, v in thinned(once, found.still[i], counts[i], settings, pick).items()}
        )
        for t in part:
            count, among = counts[len(found.windows) + t], found.moving[t]
            salient = best({p: score[t][p] for p in among}, round(count * (1 - settings.context)))
            rest = [p for p in among if p not in salient]
            kept.append({t * places + p: video[t][p] for p in salient})
            merged = thinned(video[t], rest, count - len(salient), settings, pick)
            kept.append({t * places + p: v for p, v in merged.items()})
    return kept


def holitom(video: Video, score: list[list[float]], wanted: int, settings: Settings) -> tuple[list[int], list[Vector]]:
    """The flat places kept, and their vectors."""
    found = cut(video, settings)
    sizes = found.sizes()
    wanted = min(wanted, sum(sizes))
    counts = by_remainder([size * wanted / sum(sizes) for size in sizes], wanted, sizes)
    kept = {place: v for group in groups(video, score, found, counts, settings) for place, v in group.items()}
    return sorted(kept), [kept[place] for place in sorted(kept)]


def released(
    video: Video, score: list[list[float]], share: float, settings: Settings
) -> tuple[list[int], list[Vector]]:
    """The same as released: rounded window by window and frame by frame, in the order of groups, at spread places."""
    found, total = cut(video, settings), len(video) * len(video[0])
    share = min(1.0, share * total / sum(found.sizes()))
    counts = [round(len(some) * share) for some in found.still] + [
        math.ceil(len(some) * share) for some in found.moving
    ]
    values = [
        v for group in groups(video, score, found, counts, settings, best_by_topk) for _, v in sorted(group.items())
    ]
    return [i * (total - 1) // max(1, len(values) - 1) for i in range(len(values))], values
