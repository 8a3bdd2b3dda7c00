"""Qwen2.5-VL: as Qwen2-VL, but steps stand in time by the clock, and most blocks attend within windows.

Letters: T steps of time, D backbone width.
"""

from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from langdc.backbones.base import backbones
from langdc.backbones.qwen2_vl import Qwen2VL
from langdc.metering import transformer_flops
from langdc.types import VideoFeatures


@backbones.register("qwen2_5_vl")
class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL; settings as for Qwen2-VL."""

    model_types = ("qwen2_5_vl",)
    video_processor_class = Qwen2VLVideoProcessor
    released_axes = "time"

    def times(self, video: VideoFeatures, steps: int) -> tuple[int, ...]:
        if video.is_image:
            return super().times(video, steps)
        seconds = video.seconds.double()
        between = float(seconds[-1] - seconds[0]) / (len(seconds) - 1)
        pace = self.vision.config.tokens_per_second * between * self.frames_per_step
        return tuple(int(step * pace) for step in range(steps))

    def _vision_width(self) -> int:
        return self.vision.config.hidden_size

    def _block_flops(self, patches: int, wide: int) -> float:
        config = self.vision.config
        heads, mlp = config.num_heads, config.intermediate_size
        whole = len([layer for layer in range(config.depth) if layer in config.fullatt_block_indexes])
        window = min(patches, (config.window_size // config.patch_size) ** 2)
        full = transformer_flops(whole, wide, heads, heads, wide // heads, mlp, patches)
        windowed = transformer_flops(config.depth - whole, wide, heads, heads, wide // heads, mlp, window)
        return full + windowed * patches / window
