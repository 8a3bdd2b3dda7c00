"""InternVL3 and InternVL3.5: numbered frames. Letters: T frames, H W token grid, C encoder width, D backbone width."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

from langdc.backbones.base import backbones
from langdc.backbones.llava_onevision import LlavaOnevision
from langdc.backbones.stock import StockBackbone
from langdc.language_models import VIDEO_MARK
from langdc.types import FeatureGrid, Frames, VideoFeatures


@backbones.register("internvl")
class InternVL(LlavaOnevision):
    """InternVL3 and InternVL3.5 as transformers has them (checkpoints named -HF or -hf). A frame is one tile, four
    patches are one token; images are cut into tiles, which stand below each other.

    The prompt numbers frames; a segment of several has the number of its first. Saliency is the attention that patches
    get from all, not that of the class token, which the model drops.
    """

    model_types = ("internvl",)
    placeholders: ClassVar[Mapping[str, str]] = {"video": "<video>", "image": "<IMG_CONTEXT>"}
    image_processor_class = GotOcr2ImageProcessor
    video_processor_class = InternVLVideoProcessor
    append_newline_tokens = StockBackbone.append_newline_tokens

    @property
    def side(self) -> int:
        return int(self.patch_side * self.model.config.downsample_ratio)

    def _processor_settings(self) -> dict[str, Any]:
        return {"size": {"height": self.pixel_side, "width": self.pixel_side}}

    def _pixels(self, video: Frames) -> Tensor:
        if len(video) > 1:
            return super()._pixels(video)
        pixels = video.pixels.to(self.vision.device, non_blocking=True)
        return self.image_processor(images=[pixels[0]], crop_to_patches=True, return_tensors="pt")["pixel_values"]

    @property
    def _blocks(self) -> Any:
        return self.vision.encoder.layer

    def _states(self, pixels: Tensor) -> Sequence[Tensor]:
        found = self.vision(pixels, output_hidden_states=True)
        return *found.hidden_states[:-1], found.last_hidden_state

    def _projected(self, patches: Tensor) -> Tensor:
        square = patches.unflatten(1, (self.patch_side, self.patch_side))
        joined = self._inner.pixel_shuffle(square, self.model.config.downsample_ratio)
        return self._inner.multi_modal_projector(joined.flatten(1, 2))

    def _main(self, grid: FeatureGrid, projected: Tensor) -> FeatureGrid:
        tokens, saliency = projected.unflatten(1, (self.side, self.side)), grid.saliency
        if saliency is not None:
            saliency = functional.avg_pool2d(saliency.to(self.model.device), self.patch_side // self.side)
        if grid.size is not None:
            tokens, saliency = tokens.flatten(0, 1)[None], None if saliency is None else saliency.flatten(0, 1)[None]
        return FeatureGrid(tokens, saliency)

    def written(self, video: VideoFeatures, segment_steps: int) -> str:
        place = f"<img>{VIDEO_MARK}</img>"
        if video.is_image:
            return place
        return "\n".join(f"Frame{first + 1}: {place}" for first in range(0, video.grid[0], segment_steps))
