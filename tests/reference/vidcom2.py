"""VidCom2 token by token: the printed rule (arXiv 2505.14454, section 3), and the released one with an exact budget."""

import math

from tests.reference.vectors import Vector, Video, best, by_remainder, cosine, distance, mean, unit


def steady_half(video: Video) -> Video:
    """The half of the channels that varies least over all tokens."""
    tokens = [token for frame in video for token in frame]
    variance = [sum((x - sum(c) / len(c)) ** 2 for x in c) / len(c) for c in zip(*tokens, strict=True)]
    channels = sorted(range(len(variance)), key=lambda c: variance[c])[: len(variance) // 2]
    return [[[token[c] for c in channels] for token in frame] for frame in video]


def kernels(one: Vector, centre: Vector) -> float:
    """A sum of Gaussian kernels of five widths."""
    return sum(math.exp(-(distance(one, centre) ** 2) / (2 * width)) for width in (0.125, 0.25, 0.5, 1, 2))


def vidcom2(video: Video, wanted: int, share: float, variant: str) -> list[int]:
    """The flat places that are kept: `wanted` of them, `share` of the video; "released" rounds frame by frame, and
    "vllm" then takes from or adds to the whole video, which keeps at least a token for each frame.
    """
    alike = cosine if variant == "paper" else kernels
    if variant != "paper":
        video = [[unit(token) for token in frame] for frame in steady_half(video)]
    centres = [mean(frame) for frame in video]
    whole = mean(centres)
    to_video = [[alike(token, whole) for token in frame] for frame in video]
    to_frame = [[alike(token, centre) for token in frame] for frame, centre in zip(video, centres, strict=True)]
    unusual = [-sum(row) / len(row) for row in to_video]
    weight = [math.exp((u - max(unusual)) / 0.01) for u in unusual]
    lead = [w / sum(weight) for w in weight]
    places = len(video[0])
    shares = [min(1.0, share * (1 + one - 1 / len(video))) * places for one in lead]
    counts = by_remainder(shares, wanted, [places] * len(video))
    if variant in ("released", "vllm"):
        counts = [max(1, round(one)) for one in shares]
    kept, likeness = [], {}
    for frame, count in enumerate(counts):
        score = {frame * places + p: -(to_video[frame][p] + to_frame[frame][p]) for p in range(places)}
        kept += best(score, count)
        likeness |= {place: -value for place, value in score.items()}
    if variant == "vllm":
        wanted = max(len(video), wanted)
        worst = best({place: likeness[place] for place in kept}, max(0, len(kept) - wanted))
        others = {place: -value for place, value in likeness.items() if place not in kept}
        kept = [place for place in kept if place not in worst] + best(others, max(0, wanted - len(kept)))
    return sorted(kept)
