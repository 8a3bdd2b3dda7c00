"""VisionZip frame by frame (arXiv 2412.04467, section 3)."""

from tests.reference.vectors import Vector, Video, best, cosine, evenly, mean


def one_frame(
    frame: list[Vector], score: list[float], salient: int, contexts: int, neighbours: int
) -> dict[int, Vector]:
    """What stays of a frame by place: the salient tokens, and the tokens with most company as means of their groups.

    A twin of an earlier one of these has no group, since all that is like it is as much like the other; it stays as is.
    """
    kept = {p: frame[p] for p in best(dict(enumerate(score)), salient)}
    rest = [p for p in range(len(frame)) if p not in kept]
    density = {}
    for p in rest:
        near = sorted((cosine(frame[p], frame[q]) for q in rest if q != p), reverse=True)[:neighbours]
        density[p] = sum(near) / len(near) if near else 0.0
    centres = best(density, contexts)
    groups: dict[int, list[Vector]] = {c: [] for c in centres}
    for p in rest if centres else []:
        groups[max(centres, key=lambda c: cosine(frame[p], frame[c]))].append(frame[p])
    return kept | {c: mean(group) if group else frame[c] for c, group in groups.items()}


def visionzip(
    video: Video, score: list[list[float]], wanted: int, dominant: float, neighbours: int
) -> tuple[list[int], list[Vector]]:
    """The flat places kept, `wanted` in all, and their vectors; what does not go evenly goes to salient tokens."""
    frames, places = len(video), len(video[0])
    each = wanted // frames
    salient = max(1, int(each * dominant)) if each else 0
    more = evenly(wanted - each * frames, frames, places)
    source, values = [], []
    for t, frame in enumerate(video):
        kept = one_frame(frame, score[t], salient + more[t], each - salient, neighbours)
        source += [t * places + p for p in sorted(kept)]
        values += [kept[p] for p in sorted(kept)]
    return source, values
