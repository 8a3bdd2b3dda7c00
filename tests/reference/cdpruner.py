"""CDPruner token by token (arXiv 2506.10967, section 3), with what is left of each token by Gram and Schmidt."""

from tests.reference.vectors import Vector, Video, cosine, dot, evenly, length, unit

NEW = 1e-4
SMALLEST = 1e-6


def relevance(video: Video, words: list[Vector], sign: int) -> list[list[float]]:
    """The mean cosine of each token with the words, from about 0 to 1 over the video."""
    raw = [[sign * sum(cosine(token, word) for word in words) / len(words) for token in frame] for frame in video]
    low, high = min(map(min, raw)), max(map(max, raw))
    return [[(r - low + SMALLEST) / (high - low + SMALLEST) for r in row] for row in raw]


def of_frame(frame: list[Vector], weight: list[float], count: int) -> list[int]:
    """The places kept of a frame: each makes the determinant of the kernel of those kept as large as it can be."""
    rest, kept, span = [unit(token) for token in frame], [], []
    for _ in range(count):
        gain = {p: weight[p] ** 2 * dot(rest[p], rest[p]) for p in range(len(frame)) if p not in kept}
        new = {p: g for p, g in gain.items() if dot(rest[p], rest[p]) > NEW}
        best = max(new, key=lambda p: (new[p], -p)) if new else max(gain, key=lambda p: (weight[p], -p))
        kept.append(best)
        if new:
            span.append([x / length(rest[best]) for x in rest[best]])
            rest = [[a - dot(token, span[-1]) * b for a, b in zip(token, span[-1], strict=True)] for token in rest]
    return sorted(kept)


def cdpruner(video: Video, words: list[Vector], wanted: int, sign: int = 1) -> list[int]:
    """The flat places kept."""
    places, weight = len(video[0]), relevance(video, words, sign)
    counts = evenly(wanted, len(video), places)
    return [t * places + p for t, frame in enumerate(video) for p in of_frame(frame, weight[t], counts[t])]
