"""Controls of frame selectors: evenly spaced frames, the best frames. Letters: T frames."""

import numpy as np
import torch
from torch import Tensor

from langdc.frameselectors.base import ScoredSelector, best, frameselectors
from langdc.interfaces import FrameSelector
from langdc.types import Frames


@frameselectors.register("uniform")
class Uniform(FrameSelector):
    """Evenly spaced frames: those that are read without a selector, so that it costs nothing."""

    blind = True

    def select(self, frames: Frames, question: str, budget: int) -> Tensor:
        count = min(budget, len(frames))
        return (2 * torch.arange(count) + 1) * len(frames) // (2 * count)


@frameselectors.register("top")
class Top(ScoredSelector):
    """The frames with the best scores, wherever they lie ("TOP" in the paper of AKS); of equal ones the first."""

    def choose(self, scores: np.ndarray, budget: int) -> list[int]:
        return best(scores, budget).tolist()
