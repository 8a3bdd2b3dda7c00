"""FastVID segment by segment (arXiv 2503.11187, sections 3.2-3.4), with the budget of a segment rounded once."""

import math
from dataclasses import dataclass

from tests.reference.clustering import density_peaks
from tests.reference.vectors import Vector, Video, best, cosine, mean, mix, runs


@dataclass
class Settings:
    """Those of the class, by the same names."""

    segments: int = 8
    change: float = 0.84
    still: float = 0.99
    context: float = 0.5
    stride: int = 4
    own: float = 0.5


def cuts(video: Video, settings: Settings) -> list[list[list[int]]]:
    """The segments of a video, each a list of stretches of frames."""
    whole = [mean(frame) for frame in video]
    alike = {t: cosine(whole[t - 1], whole[t]) for t in range(1, len(video))}
    largest = sorted(alike, key=lambda t: alike[t])[: settings.segments - 1]
    apart = {t for t in alike if alike[t] < settings.change} | set(largest)
    moving = {t for t in alike if alike[t] < settings.still}
    return [runs(segment, moving) for segment in runs(list(range(len(video))), apart)]


def plan(stretches: list[list[int]], kept: int, places: int, settings: Settings) -> dict[int, tuple[int, int]]:
    """For the last frame of each stretch of a segment, how many salient tokens and how many centres it keeps."""
    contexts = max(1, int(kept * settings.context)) if kept > 1 else 0
    salient = kept - contexts
    last = [stretch[-1] for stretch in stretches]
    taking = last[::-1][:: settings.stride]
    found = {}
    for i, t in enumerate(last):
        s = salient // len(last) + (i < salient % len(last))
        c = contexts // len(taking) + (taking.index(t) < contexts % len(taking)) if t in taking else 0
        if len(stretches) > 1 or len(stretches[0]) > 1:
            c = min(c, places // 2)
            s = min(s, places - c)
        found[t] = (s, min(c, places - s))
    return found


def take_in(
    video: Video, frames: list[int], salient: dict[int, list[int]], centres: dict[int, list[int]], own: float
) -> dict[tuple[int, int], Vector]:
    """Each centre with the tokens of its segment that, of the centres of its frame, are most like it."""
    found = {}
    for t in centres:
        groups: dict[int, list[Vector]] = {c: [] for c in centres[t]}
        for frame in frames:
            for p, token in enumerate(video[frame]):
                itself = frame == t and p in centres[t]
                if centres[t] and not itself and p not in salient.get(frame, []):
                    groups[max(centres[t], key=lambda c: cosine(token, video[t][c]))].append(token)
        for c, group in groups.items():
            part = max(1 / (len(group) + 1), own)
            found[t, c] = mix(part, video[t][c], mean(group)) if group else video[t][c]
    return found


def fastvid(
    video: Video, score: list[list[float]], share: float, settings: Settings, released: bool = False
) -> tuple[list[int], list[Vector]]:
    """The flat places kept, and their vectors; `released` rounds the budget of a frame instead."""
    places, done = len(video[0]), 0
    wanted = max(1, math.floor(len(video) * places * share + 1e-9))
    kept: dict[int, Vector] = {}
    for stretches in cuts(video, settings):
        frames = [t for stretch in stretches for t in stretch]
        before, done = done, (frames[-1] + 1) * wanted // len(video)
        budget = len(frames) * min(places, max(1, int(places * share))) if released else done - before
        salient, centres = {}, {}
        for t, (some, peaks) in plan(stretches, budget, places, settings).items():
            salient[t] = best(dict(enumerate(score[t])), some)
            rest = [p for p in range(places) if p not in salient[t]]
            centres[t] = density_peaks(video[t], rest, peaks, 4) if peaks else []
            kept.update({t * places + p: video[t][p] for p in salient[t]})
        mixed = take_in(video, frames, salient, centres, settings.own)
        kept.update({t * places + p: vector for (t, p), vector in mixed.items()})
    source = sorted(kept)
    return source, [kept[s] for s in source]
