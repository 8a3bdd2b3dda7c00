"""Qwen2.5-VL: as Qwen2-VL, but steps stand in time by the clock. Letters: T steps of time, D backbone width."""

from langdc.backbones.base import backbones
from langdc.backbones.qwen2_vl import Qwen2VL
from langdc.types import VideoFeatures


@backbones.register("qwen2_5_vl")
class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL; settings as for Qwen2-VL."""

    model_types = ("qwen2_5_vl",)
    released_axes = "time"

    def times(self, video: VideoFeatures, steps: int) -> tuple[int, ...]:
        if video.is_image:
            return super().times(video, steps)
        seconds = video.seconds.double()
        interval = float(seconds[-1] - seconds[0]) / (len(seconds) - 1)
        pace = self.vision.config.tokens_per_second * interval * self.frames_per_step
        return tuple(int(step * pace) for step in range(steps))
