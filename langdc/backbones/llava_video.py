"""LLaVA-Video: LLaVA-OneVision with its authors' grid. Letters: T frames, H W token grid, D width, N tokens."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from langdc.backbones.base import backbones
from langdc.backbones.llava_onevision import LlavaOnevision
from langdc.language_models import Quantize
from langdc.registry import check_choice
from langdc.sources import Source
from langdc.types import VideoFeatures, VideoTokens

Grid = Literal["authors", "onevision"]
Newlines = Literal["rows", "all"]


@backbones.register("llava_video")
class LlavaVideo(LlavaOnevision):
    """LLaVA-Video. `grid`: "authors" (default) averages 2x2 patches, 13x13 of 27x27, and ends each row with a newline
    embedding, as the model was trained; "onevision" is transformers' rule, 14x14 and one newline, as in ReTaKe.

    `newlines`: of a compressed video, those of the "rows" that still have tokens, each after its row (default), or
    "all" of each frame's after its tokens, as in VidCom2's released code, also for frames kept whole.
    """

    def __init__(
        self,
        source: Source,
        frames: int = 64,
        fps: float | None = None,
        grid: Grid = "authors",
        newlines: Newlines = "rows",
        tokenizer: str | None = None,
        dtype: str = "auto",
        attention: str = "sdpa",
        yarn: float | None = None,
        quantize: Quantize | None = None,
        text: bool = True,
        decoder: str = "pyav",
    ) -> None:
        check_choice("grid", grid, Grid)
        check_choice("newlines", newlines, Newlines)
        super().__init__(source, frames, fps, tokenizer, dtype, attention, yarn, quantize, text, decoder)
        self.grid, self.newlines = grid, newlines

    @property
    def side(self) -> int:
        return self.patch_side // 2 if self.grid == "authors" else super().side

    def pool(self, projected: Tensor) -> Tensor:
        if self.grid == "onevision":
            return super().pool(projected)
        patches = projected.unflatten(1, (self.patch_side, self.patch_side)).permute(0, 3, 1, 2)
        return functional.avg_pool2d(patches, 2).permute(0, 2, 3, 1)

    def newlines_after(self, tokens: VideoTokens, video: VideoFeatures) -> Tensor:
        if self.grid == "onevision":
            return super().newlines_after(tokens, video)
        place = self._places(tokens)
        uncompressed = len(tokens) == video.grid[0] * self.side**2
        if self.newlines == "rows" or uncompressed:
            return _last_of_run(place // self.side).long()
        return _last_of_run(place // self.side**2) * self.side

    def _places(self, tokens: VideoTokens) -> Tensor:
        """Flat indices into the grid [N]; those of new tokens follow their order within their segment."""
        if tokens.source is not None:
            return tokens.source
        order = torch.arange(len(tokens), device=tokens.segment.device)
        starts = torch.searchsorted(tokens.segment, tokens.segment)
        return tokens.segment * self.side**2 + (order - starts).clamp(max=self.side**2 - 1)


def _last_of_run(values: Tensor) -> Tensor:
    """True at the last of each run of equal values."""
    return torch.cat([values[1:] != values[:-1], values.new_ones(1, dtype=torch.bool)])
