"""AKS: the best frames where few stand out, else of each half of the video. Letters: T frames.

Source: Adaptive Keyframe Sampling (arXiv 2502.21271), its rule "ADA"; frame_select.py of its release (ncTimTang/AKS).
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from torch import Tensor

from langdc.frameselectors.base import ScoredSelector, best, frameselectors
from langdc.registry import check_choice
from langdc.types import Frames

Variant = Literal["fixed", "released"]


@frameselectors.register("aks")
class AKS(ScoredSelector):
    """Adaptive keyframe sampling: judge a part of the video by its scores, and keep its best frames or split it.

    Scores are brought to [0, 1]. Where the mean of a part's best scores is above the mean of all its scores by more
    than `threshold`, its best frames are kept; else its halves are judged, each with half of the frames to keep, down
    to `depth` splits. Its best scores are as many as the whole budget, as in the release, so that a part with no more
    frames than that is always split. Scores are cosines; the release also takes the matching head of BLIP, by default.
    `variant`: "released" rounds each part's share down, so that it may keep fewer frames than the budget, and none
    where that is below 2**depth; "fixed", the default, gives the odd frame to the later half, splits no part for one
    frame, and keeps as many as the budget. They agree where 2**depth divides the budget.
    """

    paper = "arXiv 2502.21271"

    def __init__(
        self,
        scorer: dict[str, Any] | Callable[[Frames, str], Tensor],
        fps: float = 1.0,
        most: int = 1024,
        variant: Variant = "fixed",
        threshold: float = 0.8,
        depth: int = 5,
    ) -> None:
        super().__init__(scorer, fps, most)
        check_choice("aks variant", variant, Variant)
        if depth < 0:
            raise ValueError(f"depth={depth}; give 0 or more.")
        self.variant, self.threshold, self.depth = variant, threshold, depth

    def choose(self, scores: np.ndarray, budget: int) -> list[int]:
        low, high = scores.min(), scores.max()
        scores = (scores - low) / (high - low if high > low else 1.0)  # equal ones divide by zero in the release
        parts = self._parts(scores, 0, len(scores), budget, budget, 0)
        return [start + int(place) for start, part, count in parts for place in best(part, int(count))]

    def _parts(
        self, scores: np.ndarray, start: int, stop: int, count: float, budget: int, depth: int
    ) -> Iterator[tuple[int, np.ndarray, float]]:
        """The parts between two frames that are split no further: where they start, their scores, frames to keep."""
        part = scores[start:stop]
        if not len(part):
            return
        stands_out = part[best(part, budget)].mean() - part.mean() > self.threshold
        if stands_out or depth >= self.depth or (self.variant == "fixed" and count == 1):
            yield start, part, count
            return
        middle, first = start + len(part) // 2, count / 2 if self.variant == "released" else count // 2
        yield from self._parts(scores, start, middle, first, budget, depth + 1)
        yield from self._parts(scores, middle, stop, count - first, budget, depth + 1)
