"""AKS: the best frames where few stand out, else of each half of the video. Letters: T frames.

Source: Adaptive Keyframe Sampling (arXiv 2502.21271), its rule "ADA"; frame_select.py of its release (ncTimTang/AKS).
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch import Tensor

from langdc.frameselectors.base import ScoredSelector, Scorer, best, frameselectors
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
    where that is below `2**depth`; "fixed", the default, gives the odd frame to the later half, splits no part for one
    frame, and keeps as many as the budget. They agree where `2**depth` divides the budget.
    """

    paper = "arXiv 2502.21271"

    def __init__(
        self,
        scorer: Scorer,
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

    def select(self, frames: Frames, question: str, budget: int) -> Tensor:
        found = super().select(frames, question, budget)
        if not len(found):
            raise ValueError(
                f"aks 'released' keeps no frame of a budget of {budget} after {self.depth} splits. Set depth to at "
                f"most {budget.bit_length() - 1}, or variant to fixed."
            )
        return found

    def choose(self, scores: np.ndarray, budget: int) -> list[int]:
        spread = np.ptp(scores) or 1.0  # the release divides by zero
        return list(self._kept((scores - scores.min()) / spread, 0, budget, budget, self.depth))

    def _kept(self, part: np.ndarray, start: int, count: float, budget: int, depth: int) -> Iterator[int]:
        """The places kept of a part that begins at `start`, `count` of them; it may be split `depth` times."""
        if not len(part):
            return
        stands_out = part[best(part, budget)].mean() - part.mean() > self.threshold
        if stands_out or depth == 0 or (self.variant == "fixed" and count == 1):
            yield from (start + best(part, int(count))).tolist()
            return
        half, first = len(part) // 2, count / 2 if self.variant == "released" else count // 2
        yield from self._kept(part[:half], start, first, budget, depth - 1)
        yield from self._kept(part[half:], start + half, count - first, budget, depth - 1)
