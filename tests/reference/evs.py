"""EVS token by token, on embeddings as vLLM's code has it (arXiv 2510.14624 compares pixels)."""

import math

from tests.reference.vectors import Video, best, cosine


def evs(video: Video, wanted: int) -> list[int]:
    """The flat places that are kept: those of the first frame, then the least like the one before; of equals the
    earlier.
    """
    places = len(video[0])
    new = dict.fromkeys(range(places), math.inf)
    for t in range(1, len(video)):
        new |= {t * places + p: 1 - cosine(video[t][p], video[t - 1][p]) for p in range(places)}
    return best(new, max(places, wanted))


def vllm_count(frames: int, places: int, rate: float) -> int:
    """How many tokens vLLM keeps at a pruning rate: rounded down, at least a frame."""
    return max(places, int(frames * places * (1 - rate)))
