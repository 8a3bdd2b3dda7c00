"""Budgets of a video's chunks, by distance or by change. Letters: D backbone width, N chunks, P tokens per frame."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_MIN_SHARE = 1e-3


def shares_by_distance(share: float, chunks: Sequence[Tensor]) -> list[float]:
    """Shares of N chunks [D] with the mean `share`, by the mean distance (1 - cosine) to both neighbours; a chunk at an
    end is its own neighbour. Equal shares where nothing differs.
    """
    each = torch.stack(list(chunks))
    beside = torch.cat([each[:1], each, each[-1:]])
    apart = [1 - functional.cosine_similarity(each, other, dim=-1) for other in (beside[:-2], beside[2:])]
    distances = ((apart[0] + apart[1]) / 2).tolist()
    mean, count = sum(distances) / len(distances), len(distances)
    return project([share * each / mean for each in distances], share * count) if mean > 0 else [share] * count


def shares_by_change(share: float, chunks: Sequence[Tensor]) -> list[float]:
    """Shares by the mean change from frame to frame within each chunk [frames,P,D], at most 1 (AdaReTaKe, eqs. 8-9),
    with the mean `share`, which the printed eq. 9 lacks. A chunk of one frame counts as the mean of the others.
    """
    each = [(1 - functional.cosine_similarity(c[1:], c[:-1], dim=-1)).mean() for c in chunks if len(c) > 1]
    changes = torch.stack(each).tolist() if each else []
    mean = sum(changes) / max(len(changes), 1)
    if not mean > 0:
        return [share] * len(chunks)
    following = iter(changes)
    return [min(1.0, share * (next(following) if len(c) > 1 else mean) / mean) for c in chunks]


def project(wanted: list[float], total: float, max_share: float = 1.0, tolerance: float = 1e-5) -> list[float]:
    """The numbers of [0.001, `max_share`] nearest to `wanted` whose sum is `total`, by bisection for the amount
    subtracted from each, to upstream's `tolerance`: equal numbers come back with an error of up to half of it.
    """
    if not wanted:
        return []
    wish = torch.tensor(wanted, dtype=torch.float64)
    scale = wish / wish.sum() * total if wish.sum() > 0 else torch.full_like(wish, total / len(wish))
    low, high = float(scale.min()) - max_share, float(scale.max()) - _MIN_SHARE
    for _ in range(100):
        if high - low <= tolerance:
            break
        middle = (high + low) / 2
        if float((scale - middle).clamp(_MIN_SHARE, max_share).sum()) > total:
            low = middle
        else:
            high = middle
    return (scale - (high + low) / 2).clamp(_MIN_SHARE, max_share).tolist()


def means_of_frames(tokens: Tensor, frame_tokens: int, chunks: int) -> list[Tensor] | None:
    """One vector [D] per chunk, the mean of an even N-th of the frames of tokens [n,D]; None with too few frames."""
    frames = len(tokens) // frame_tokens
    means = tokens[: frames * frame_tokens].unflatten(0, (frames, frame_tokens)).mean(1)
    per_chunk = frames / chunks
    cuts = [(int(i * per_chunk), min(int((i + 1) * per_chunk), frames)) for i in range(chunks)]
    if any(stop <= start for start, stop in cuts):
        return None
    return [means[start:stop].mean(0) for start, stop in cuts]
