"""Qwen2-VL: two frames make one step. Letters: T steps of time, H W token grid, N tokens, A = 3 rotary axes."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from langdc.backbones.base import backbones
from langdc.backbones.splice import slot_tokens
from langdc.backbones.stock import StockBackbone
from langdc.encoders.base import encoding
from langdc.language_models import Quantize
from langdc.registry import check_choice
from langdc.sources import Source
from langdc.timing import stage
from langdc.types import FeatureGrid, Frames, Grids, Prompt, Slot, VideoFeatures, VideoTokens

Positions = Literal["trained", "transformers"]
NewTokens = Literal["time", "words"]


@backbones.register("qwen2_vl")
class Qwen2VL(StockBackbone):
    """Qwen2-VL. `pixels`: [fewest, most] pixels of a frame, in place of the checkpoint's.

    `positions`: where text continues after a video. "trained" (default): after all axes of the video, as the models
    were trained; "transformers": as transformers 5, after rows and columns, so that text overlaps a long video.
    `new_tokens`: positions of tokens that come from no patch. "time" (default): at the time of their segment's first
    step, rows and columns along the diagonal; "words": one after the other on all axes, as text.
    """

    model_types = ("qwen2_vl",)
    image_processor_class = Qwen2VLImageProcessor
    video_processor_class = Qwen2VLVideoProcessor
    frames_per_step = 2
    released_axes = "all"  # the authors' code shifts a view that all axes of a new token share

    def __init__(
        self,
        source: Source,
        frames: int = 32,
        fps: float | None = None,
        pixels: list[int] | None = None,
        positions: Positions = "trained",
        new_tokens: NewTokens = "time",
        tokenizer: str | None = None,
        dtype: str = "auto",
        attention: str = "sdpa",
        yarn: float | None = None,
        quantize: Quantize | None = None,
        text: bool = True,
        decoder: str = "pyav",
    ) -> None:
        check_choice("positions", positions, Positions)
        check_choice("new_tokens", new_tokens, NewTokens)
        if pixels is not None and (len(pixels) != 2 or not 0 < pixels[0] <= pixels[1]):
            raise ValueError(
                f"pixels={pixels}; give the fewest and the most pixels of a frame, such as [3136, 200704]."
            )
        super().__init__(source, frames, fps, tokenizer, dtype, attention, yarn, quantize, text, decoder)
        self.pixels, self.numbering, self.new_tokens = pixels, positions, new_tokens

    # ---- from frames to features

    @property
    def _size(self) -> dict[str, int]:
        return self._limits(self.video_processor)

    def _limits(self, processor: Any) -> dict[str, int]:
        """The fewest and the most pixels, as transformers names them."""
        if self.pixels:
            return dict(zip(("shortest_edge", "longest_edge"), self.pixels, strict=True))
        return {name: processor.size[name] for name in ("shortest_edge", "longest_edge")}

    @property
    def preprocessing(self) -> str:
        return f"{super().preprocessing} {self.pixels}"

    def read_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        return smart_resize(height, width, self._token_side, *self._size.values())

    @property
    def _token_side(self) -> int:
        """Pixels of one token's side."""
        return self.vision.config.patch_size * self.vision.config.spatial_merge_size

    def _processor_settings(self) -> dict[str, Any]:
        config = self.vision.config
        return {
            "patch_size": config.patch_size,
            "temporal_patch_size": config.temporal_patch_size,
            "merge_size": config.spatial_merge_size,
        }

    def encode(self, videos: list[Frames], need: frozenset[str] = frozenset(), synced: bool = False) -> list[Grids]:
        """One call of the encoder for all videos and images."""
        if not videos:
            return []
        patches, grids = zip(*map(self.patches_of, videos), strict=True)
        return [{"video": grid} for grid in self.read_patches(torch.cat(patches), torch.cat(grids))]

    def patches_of(self, video: Frames) -> tuple[Tensor, Tensor]:
        """Patches [n,values] of a video or image in the stock processor's order, and their grid [1,3]; the patches are
        made on the encoder's device.
        """
        options: dict[str, Any] = {"return_tensors": "pt", **({"size": self._size} if self.pixels else {})}
        with stage("preprocess"):
            pixels = video.pixels.to(next(self.vision.parameters()).device, non_blocking=True)
            if len(video) == 1:
                result = self.image_processor(images=[pixels[0]], **options)
                return result["pixel_values"], result["image_grid_thw"]
            if hasattr(self.video_processor, "cap_pixels_per_frame"):
                # the rule of the models' authors; transformers warns without a choice
                options["cap_pixels_per_frame"] = True
            result = self.video_processor(videos=[pixels], do_sample_frames=False, **options)
        return result["pixel_values_videos"], result["video_grid_thw"]

    def read_patches(self, patches: Tensor, grids: Tensor) -> list[FeatureGrid]:
        """Features of videos from their patches [n,values] in the stock processor's order and their `grids` [B,3]."""
        device = next(self.vision.parameters()).device  # in training the whole model may hide its parts
        with encoding(self.vision):
            output = self.vision(patches.to(device, self.vision.dtype), grid_thw=grids.to(device, non_blocking=True))
        merge = self.vision.spatial_merge_size
        shapes = [(steps, rows // merge, columns // merge) for steps, rows, columns in grids.tolist()]
        sizes = [steps * rows * columns for steps, rows, columns in shapes]
        sides = [side.split(sizes) for side in getattr(output, "deepstack_features", None) or ()]
        return [
            FeatureGrid(values.unflatten(0, shape), None, tuple(side[number].unflatten(0, shape) for side in sides))
            for number, (values, shape) in enumerate(zip(output.pooler_output.split(sizes), shapes, strict=True))
        ]

    def outline(self, video: Frames) -> VideoFeatures:
        side, (height, width) = self._token_side, video.pixels.shape[2:]
        if len(video) == 1:
            fewest, most = self._limits(self.image_processor).values()
            height, width = smart_resize(height, width, side, fewest, most)
        else:
            height, width = self.read_size(len(video), height, width)
        shape = (-(-len(video) // self.frames_per_step), height // side, width // side, 0)
        return VideoFeatures((), {"video": FeatureGrid(torch.empty(shape))}, video.seconds)

    def encode_blank(self, encoded: Grids) -> int:
        steps, rows, columns = encoded["video"].values.shape[:3]
        config, merge = self.vision.config, self.vision.spatial_merge_size
        values = 3 * config.temporal_patch_size * config.patch_size**2
        patches = torch.zeros(rows * columns * merge**2, values, device=next(self.vision.parameters()).device)
        self.read_patches(patches, torch.tensor([[1, rows * merge, columns * merge]]))
        return steps

    # ---- where tokens stand

    def slots(self, number: int, video: VideoFeatures, segment_steps: int) -> list[Slot]:
        steps, height, width = video.grid
        return [Slot(0, number, None, self.times(video, steps), height, width, segment_steps)]

    def times(self, video: VideoFeatures, steps: int) -> tuple[int, ...]:
        """The position in time of each step of a video, from its first."""
        return tuple(range(steps))

    def positions(self, prompt: Prompt, tokens: list[VideoTokens]) -> Tensor:
        return torch.cat(list(self._pieces(prompt, tokens)), 1)[:, None]

    def _pieces(self, prompt: Prompt, tokens: list[VideoTokens]) -> Iterator[Tensor]:
        """Positions [A,n] of each piece of text and each slot, in order."""
        start, read = 0, 0
        for slot, part in zip(prompt.slots, slot_tokens(prompt, tokens), strict=True):
            yield torch.arange(start, start + slot.position - read).expand(3, -1)
            start, read = start + slot.position - read, slot.position
            places = self._places(slot, part)
            yield places + start
            start += self._extent(slot, places)
        yield torch.arange(start, start + len(prompt.ids) - read).expand(3, -1)

    def _places(self, slot: Slot, part: VideoTokens) -> Tensor:
        """Time, row and column of a slot's tokens [A,N], relative to the slot's start."""
        if part.source is not None:
            source, frame = part.source.cpu(), slot.height * slot.width
            step = source // frame
            time = torch.tensor(slot.times)[step if slot.segment is None else torch.zeros_like(step)]
            return torch.stack([time, source % frame // slot.width, source % slot.width])
        # tokens that come from no patch stand by `new_tokens`
        order = torch.arange(len(part))
        if self.new_tokens == "words":
            return order.expand(3, -1)
        segment = part.segment.cpu()
        by_segment, rows = segment.sort(stable=True)
        within = torch.empty_like(order)
        within[rows] = order - torch.searchsorted(by_segment, by_segment)
        first = (segment * slot.segment_steps).clamp(max=len(slot.times) - 1)
        time = torch.tensor(slot.times)[first if slot.segment is None else torch.zeros_like(first)]
        return torch.stack([time, within, within])

    def _extent(self, slot: Slot, places: Tensor) -> int:
        """How far the text after a slot is from the slot's start, independent of what was dropped."""
        sides = [slot.height, slot.width]
        if places.shape[1]:
            sides.append(int(places[1:].max()) + 1)
        if self.numbering == "trained":
            sides.append(slot.times[-1] + 1)
        return max(sides)
