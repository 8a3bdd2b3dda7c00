"""What every encoder does: frames in, a grid per video out. Letters: B clips, T frames, H W patch grid, C width."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langdc.registry import Registry
from langdc.timing import stage
from langdc.types import FeatureGrid, Frames

encoders: Registry["Encoder"] = Registry("encoder")


@contextmanager
def encoding(module: nn.Module) -> Iterator[None]:
    """Record gradients only where an encoder is trained; autocast leaves alone a frozen one that is in a 16-bit type,
    since it would take each norm to float32 and back.
    """
    trained, weight = any(weight.requires_grad for weight in module.parameters()), next(module.parameters())
    device = weight.device.type
    alone = not trained and weight.dtype.itemsize == 2 and torch.amp.is_autocast_available(device)
    with (
        torch.set_grad_enabled(torch.is_grad_enabled() and trained),
        torch.autocast(device, enabled=False) if alone else nullcontext(),
    ):
        yield


class Encoder(nn.Module, ABC):
    """A network that sees frames. `width` is C, `side` is H = W, `size` how many pixels a side of a frame has."""

    width: int
    side: int
    size: int
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    @abstractmethod
    def run(self, pixels: Tensor, frames: list[int]) -> Tensor:
        """Encode the normalised frames [sum T,3,size,size] of several videos of `frames` frames each: [sum T,H,W,C]."""

    def forward(self, videos: list[Frames]) -> list[FeatureGrid]:
        """Encode all frames of all videos in one batch; gradients flow where the encoder is trained."""
        with stage("preprocess"):
            pixels = torch.cat([self.prepare(video.pixels) for video in videos])
        lengths = [len(video) for video in videos]
        with encoding(self):
            return [FeatureGrid(part) for part in self.run(pixels, lengths).split(lengths)]

    def prepare(self, pixels: Tensor) -> Tensor:
        """Resize uint8 frames [T,3,height,width] to the encoder's size and normalise them, on the encoder's device."""
        parameter = next(self.parameters())
        values = pixels.to(parameter.device, non_blocking=True).float()  # a copy with a type is made on the host
        if values.shape[-2:] != (self.size, self.size):
            values = F.interpolate(values, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 255)
        return ((values / 255 - self.mean.float()) / self.std.float()).to(parameter.dtype)
