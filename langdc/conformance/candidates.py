"""What is tested: a class with settings, on videos of noise. Letters: T frames, H W patch grid, D backbone width."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from langdc.data.records import QuestionRecord, Record, SegmentRecord
from langdc.types import FeatureGrid, VideoFeatures

WIDTH, SIDE, FRAMES, PER_SEGMENT, SIDE_FEATURES = 48, 6, 16, 4, 8


def noise(
    seed: int = 0, frames: int = FRAMES, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (SIDE, SIDE)
) -> VideoFeatures:
    """One stream of features [T,H,W,48] of noise, with a question and side features of each token."""
    generator = torch.Generator().manual_seed(seed)

    def grid(width: int) -> Tensor:
        return torch.randn(frames, *size, width, generator=generator).to(dtype)

    main = FeatureGrid(grid(WIDTH), torch.rand(frames, *size, generator=generator), (grid(SIDE_FEATURES).to(dtype),))
    question = torch.randn(5, WIDTH, generator=generator).to(dtype)
    return VideoFeatures((main,), {"video": main}, torch.arange(frames) / 8, question)


def record(frames: int, steps: int, seed: int = 0) -> Record:
    """A record of a video of `frames` steps: a caption for each segment of `steps` steps, a question and its answer."""
    colours = ("red", "blue", "green", "yellow")
    captions = [f"{colours[(seed + i) % 4]} ring" if (seed + i) % 3 else "" for i in range(-(-frames // steps))]
    return Record(
        id=f"v{seed}",
        video=f"v{seed}.mp4",
        segments=[SegmentRecord(caption=caption) for caption in captions],
        questions=[QuestionRecord(kind="colour", question="what colour is the ring ?", answer=colours[seed % 4])],
    )


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
        """Build one with these settings, by default with keep=0.25; what a backbone fills in fits `noise`."""
        torch.manual_seed(0)
        settings = self.settings | changes
        if self.takes_budget and not {"keep", "tokens"} & set(settings):
            settings["keep"] = 0.25
        filled = {"width": WIDTH, "streams": {"video": WIDTH}, "frames_per_segment": PER_SEGMENT}
        parameters = inspect.signature(self.kind).parameters
        made = self.kind(**{name: value for name, value in filled.items() if name in parameters} | settings)
        return made.eval() if isinstance(made, torch.nn.Module) else made

    def __str__(self) -> str:
        return self.name
