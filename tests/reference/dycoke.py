"""DyCoke's merging in time, frame by frame (arXiv 2411.15024, section 3.2)."""

from tests.reference.vectors import Video, best, cosine, evenly


def dycoke(video: Video, wanted: int) -> list[int]:
    """The flat places that are kept: frames 0, 4, 8 .. whole, of the others what is left of the budget."""
    places = len(video[0])
    between = [t for t in range(len(video)) if t % 4]
    left = max(0, wanted - (len(video) - len(between)) * places)
    counts = dict(zip(between, evenly(left, len(between), places), strict=True)) if between else {}
    kept = []
    for t, frame in enumerate(video):
        before = video[{0: t, 1: t - 1, 2: t - 2, 3: t - 1}[t % 4]]
        change = {p: -cosine(frame[p], before[p]) for p in range(places)}
        kept += [t * places + p for p in best(change, counts.get(t, places))]
    return kept


def released(video: Video, share: float) -> list[int]:
    """The same as released: pair after pair, then the third of each four frames but the last; `share` of what thins."""
    if len(video) == 1:
        return list(range(len(video[0])))
    kept = {t: list(range(len(video[0]))) for t in range(len(video) - len(video) % 2)}
    thinned = [(t + 1, t) for t in range(0, len(kept), 2)] + [(t + 2, t) for t in range(0, len(video) - 4, 4)]
    for t, before in thinned:
        change = {p: -cosine(video[t][p], video[before][p]) for p in range(len(video[t]))}
        kept[t] = best(change, int(share * len(change)))
    return [t * len(video[0]) + p for t in kept for p in kept[t]]


def read_of_video(attention: list[list[float]], count: int, released: bool) -> list[list[int]]:
    """Which keys of a video each token of a reply reads (section 3.3), from the attention that it pays to each of them:
    the best `count`, or those of the last token where its attention was like this (as released: all).
    """
    found, chosen = [], []
    for number, paid in enumerate(attention):
        alike = number > 0 and cosine(paid, attention[number - 1]) >= 0.9
        if not alike:
            chosen = best(dict(enumerate(paid)), count)
        found.append(list(range(len(paid))) if alike and released else chosen)
    return found
