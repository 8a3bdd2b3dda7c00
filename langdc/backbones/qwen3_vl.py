"""Qwen3-VL: timestamps between steps, and DeepStack features. Letters: T steps of time, H W token grid, D width."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor, smart_resize

from langdc.backbones.base import backbones
from langdc.backbones.qwen2_vl import Qwen2VL
from langdc.backbones.splice import joined_sides
from langdc.language_models import VIDEO_MARK
from langdc.types import Slot, Spliced, VideoFeatures

START, END = "<|vision_start|>", "<|vision_end|>"


@backbones.register("qwen3_vl")
class Qwen3VL(Qwen2VL):
    """Qwen3-VL; settings as for Qwen2-VL, but `pixels` are of a whole video. positions="transformers" leaves a second
    pair of marks around a video, as transformers 5 does; "trained" has one pair around each step alone.
    """

    model_types = ("qwen3_vl",)
    image_processor_class = Qwen2VLImageProcessor
    video_processor_class = Qwen3VLVideoProcessor
    released_axes = "time"

    def read_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        if frames == 1:
            return height, width
        steps, side = self.vision.config.temporal_patch_size, self._token_side
        return smart_resize(frames, height, width, steps, side, *self._size.values())

    def slots(self, number: int, video: VideoFeatures, segment_steps: int) -> list[Slot]:
        steps, height, width = video.grid
        segments = [None] if video.is_image else list(range(-(-steps // segment_steps)))
        return [Slot(0, number, segment, (0,), height, width, segment_steps) for segment in segments]

    def marked(self, text: str, media: Sequence[VideoFeatures], segment_steps: int) -> str:
        placeholder = self.placeholders["video"]
        if self.numbering == "trained":
            text = text.replace(f"{START}{placeholder}{END}", placeholder)
        return super().marked(text, media, segment_steps)

    def written(self, video: VideoFeatures, segment_steps: int) -> str:
        """Before each segment's tokens its time, the mean of its first and last frame's."""
        if video.is_image:
            return VIDEO_MARK
        times = video.seconds.tolist()
        times += times[-1:] * (-len(times) % self.frames_per_step)
        size = self.frames_per_step * segment_steps
        parts = [times[start : start + size] for start in range(0, len(times), size)]
        return "".join(f"<{(part[0] + part[-1]) / 2:.1f} seconds>{START}{VIDEO_MARK}{END}" for part in parts)

    def arguments(self, spliced: Spliced) -> Callable[[Tensor], Mapping[str, Any]] | None:
        if not spliced.extra:
            return None
        place = spliced.video.cumsum(0) - 1

        def of(rows: Tensor) -> Mapping[str, Any]:
            shown = spliced.video[rows]
            if not shown.any():
                return {}
            index = place[rows][shown]
            return {"visual_pos_masks": shown[None], "deepstack_visual_embeds": [e[index] for e in spliced.extra]}

        return of

    def batch_arguments(self, items: list[Spliced], length: int, left: bool = False) -> Mapping[str, Any]:
        joined = joined_sides([(item.extra, int(item.video.sum())) for item in items])
        if not joined:
            return {}  # text, or new tokens only: nothing is added anywhere
        shown = [item.video for item in items]
        gaps = [rows.new_zeros(length - len(rows)) for rows in shown]
        mask = [torch.cat([gap, rows] if left else [rows, gap]) for gap, rows in zip(gaps, shown, strict=True)]
        return {"visual_pos_masks": torch.stack(mask), "deepstack_visual_embeds": list(joined)}
