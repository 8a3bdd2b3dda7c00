"""How much there is to see in each of the S segments of a video of T frames, from its pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from langdc.types import Frames

SIDE = 112
"""Frames are looked at no larger than this, so that richness costs little and does not depend on resolution."""
LEVELS = 32
STRONGEST = 128.0
"""Gradients of grey levels (0 to 255) at least this steep share the last of the LEVELS bins."""


@torch.no_grad()
def richness(frames: Frames, frames_per_segment: int) -> dict[str, list[float]]:
    """The motion and the edge entropy of each segment: two lists of S numbers.

    "motion": mean absolute change of grey levels (0 to 255) from the frame before, the step into the segment included;
    0 for a single image. "edges": Shannon entropy in bits of the gradient's magnitude over LEVELS bins, mean over the
    segment's frames; 0 for a frame of one colour.
    """
    height, width = frames.pixels.shape[-2:]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(2, round(height * scale)), max(2, round(width * scale)))
    grey = F.interpolate(frames.pixels.cpu().float().mean(1, keepdim=True), size, mode="area")[:, 0]
    motion = grey.diff(dim=0).abs().mean((1, 2))  # into every frame but the first
    # entropy of the gradients' magnitudes of each frame [T]
    across, down = grey[:, :-1].diff(dim=2), grey[:, :, :-1].diff(dim=1)
    strength = (across**2 + down**2).sqrt().flatten(1)
    level = (strength * (LEVELS / STRONGEST)).long().clamp(max=LEVELS - 1)
    frame = torch.arange(len(grey))[:, None] * LEVELS
    counts = torch.bincount((level + frame).flatten(), minlength=len(grey) * LEVELS).view(-1, LEVELS)
    share = counts / counts.sum(1, keepdim=True)
    edges = -torch.xlogy(share, share).sum(1) / torch.log(torch.tensor(2.0))
    firsts = range(0, len(grey), frames_per_segment)
    return {
        "motion": [_mean(motion[max(first - 1, 0) : first - 1 + frames_per_segment]) for first in firsts],
        "edges": [_mean(edges[first : first + frames_per_segment]) for first in firsts],
    }


def _mean(values: Tensor) -> float:
    """The mean; 0 for an empty tensor."""
    return round(float(values.mean().nan_to_num()), 4)
