"""What is tested: a class with settings; and videos of noise to test it on.

Letters: T frames, H W patch grid, D backbone width.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from langdc.types import FeatureGrid, VideoFeatures

WIDTH, SIDE, FRAMES, PER_SEGMENT, SIDE_FEATURES = 48, 6, 16, 4, 8


def noise(seed: int = 0, frames: int = FRAMES, dtype: torch.dtype = torch.float32) -> VideoFeatures:
    """One stream of features [T,6,6,48] of noise, with a question and side features of each token."""
    dice = torch.Generator().manual_seed(seed)

    def grid(width: int) -> Tensor:
        return torch.randn(frames, SIDE, SIDE, width, generator=dice).to(dtype)

    main = FeatureGrid(grid(WIDTH), torch.rand(frames, SIDE, SIDE, generator=dice), (grid(SIDE_FEATURES).to(dtype),))
    question = torch.randn(5, WIDTH, generator=dice).to(dtype)
    return VideoFeatures((main,), {"video": main}, torch.arange(frames) / 8, question)


@dataclass(frozen=True)
class Candidate:
    """A compressor class (or a function that builds one) with settings; `video` makes its inputs."""

    name: str
    kind: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)
    video: Callable[..., VideoFeatures] = noise

    @property
    def takes_budget(self) -> bool:
        """Whether it has the keywords `keep` and `tokens`."""
        return {"keep", "tokens"} <= set(inspect.signature(self.kind).parameters)

    def make(self, **changes: Any) -> Any:
        """One with these settings; a quarter is kept where nothing is said."""
        torch.manual_seed(0)
        settings = {**self.settings, **changes}
        if self.takes_budget and not {"keep", "tokens"} & set(settings):
            settings["keep"] = 0.25
        if "frames_per_segment" in inspect.signature(self.kind).parameters:
            settings.setdefault("frames_per_segment", PER_SEGMENT)
        made = self.kind(**settings)
        return made.eval() if isinstance(made, torch.nn.Module) else made

    def __str__(self) -> str:
        return self.name
