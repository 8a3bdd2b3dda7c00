"""The zoo of token compressors."""

import torch
from torch import Tensor

from langdc.interfaces import TokenCompressor
from langdc.registry import Registry

compressors: Registry[TokenCompressor] = Registry("compressor")


def segment_of_frame(frames: int, frames_per_segment: int, device: torch.device) -> Tensor:
    """Which segment each of T frames belongs to: [T]."""
    return torch.arange(frames, device=device) // frames_per_segment
