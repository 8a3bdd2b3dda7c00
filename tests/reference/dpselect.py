"""DPSelect series by series (ReTaKe, arXiv 2412.20504, section 3.2)."""

from tests.reference.vectors import Video, best, cosine


def changes(video: Video) -> list[list[float]]:
    """One minus the cosine to the moment before, for every frame and place; all of the first frame is new."""
    later = [
        [1 - cosine(now, then) for now, then in zip(video[t], video[t - 1], strict=True)] for t in range(1, len(video))
    ]
    return [[1.0] * len(video[0]), *later]


def peaks(series: list[float], window: int) -> list[bool]:
    """Which moments top the window around them; of equals, the first. Even windows reach one further back."""
    found = []
    for t in range(len(series)):
        near = range(max(0, t - window // 2), min(len(series), t + (window - 1) // 2 + 1))
        found.append(max(near, key=lambda s: series[s]) == t)
    return found


def dpselect(video: Video, count: int, window: int, per_frame: bool) -> tuple[list[int], list[bool]]:
    """The flat places kept when every place keeps `count` moments, and whether each is a peak."""
    change = changes(video)
    places = len(video[0])
    chosen = {}
    for place in range(places):
        series = [sum(row) / places if per_frame else row[place] for row in change]
        top = peaks(series, window)
        first = best({t: series[t] for t in range(len(series)) if top[t]}, count)
        rest = best({t: series[t] for t in range(len(series)) if not top[t]}, count - len(first))
        chosen.update({t * places + place: top[t] for t in first + rest})
    source = sorted(chosen)
    return source, [chosen[s] for s in source]
