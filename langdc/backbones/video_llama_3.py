"""VideoLLaMA3: times between frames. Letters: T frames, H W token grid, C encoder width, D backbone width, N tokens."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.video_llama_3.image_processing_video_llama_3 import VideoLlama3ImageProcessor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor, smart_resize

from langdc.backbones.base import backbones
from langdc.backbones.stock import StockBackbone
from langdc.encoders.base import encoding
from langdc.language_models import VIDEO_MARK
from langdc.timing import stage
from langdc.types import FeatureGrid, Frames, Grids, VideoFeatures, VideoTokens


@backbones.register("video_llama_3")
class VideoLlama3(StockBackbone):
    """VideoLLaMA3 as transformers has it. The prompt has the time of each frame, or of each segment's first frame.

    The model's own compression (arXiv 2501.13106, section 2.1) leaves out patches whose pixels are those of the frame
    before, where the checkpoint's `use_token_compression` says so: here of uncompressed videos alone. What a compressor
    chose is not thinned out again.
    """

    model_types = ("video_llama_3",)
    image_processor_class = VideoLlama3ImageProcessor
    video_processor_class = VideoLlama3VideoProcessor

    @property
    def vision(self) -> Any:
        return self._inner.vision_model

    @property
    def projectors(self) -> nn.ModuleDict:
        return nn.ModuleDict({"video": self._inner.projector})

    @property
    def stream_widths(self) -> dict[str, int]:
        return {"video": self.vision.config.hidden_size}

    # ---- from frames to features

    def _processor_settings(self) -> dict[str, Any]:
        return {"patch_size": self.vision.config.patch_size}

    def _limits(self, frames: int) -> tuple[int, int, int]:
        """Pixels of one token's side, and the fewest and the most of a frame."""
        found = self.video_processor
        side = found.patch_size * found.merge_size
        return side, found.size["shortest_edge"], found.size["longest_edge"] // frames

    def read_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        return (height, width) if frames == 1 else smart_resize(height, width, *self._limits(frames))

    def encode(self, videos: list[Frames], need: frozenset[str] = frozenset(), synced: bool = False) -> list[Grids]:
        """One call of the encoder for all videos and images; `extra`: 0 at patches that do not change, [T,H,W,1], which
        are no features, so projected grids come without.
        """
        if not videos:
            return []
        with stage("preprocess"):
            made = list(map(self.patches_of, videos))
        patches, grids, merges, changed = zip(*made, strict=True)
        found = self.read_patches(torch.cat(patches), torch.cat(grids), torch.cat(merges))
        return [
            {"video": replace(grid, extra=(marks.to(grid.values).view(*grid.values.shape[:3], 1),))}
            for grid, marks in zip(found, changed, strict=True)
        ]

    def patches_of(self, video: Frames) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches [n,values] of a video or image in the stock processor's order, their grid [1,3], how many on a side
        are one token [1], and which tokens change [N]; made on the encoder's device.
        """
        pixels = video.pixels.to(next(self.vision.parameters()).device, non_blocking=True)
        if len(video) == 1:
            made = self.image_processor(images=[pixels[0]], return_tensors="pt")
            merge = made["image_merge_sizes"]
            count = len(made["pixel_values"]) // self.image_processor.merge_size**2
            return made["pixel_values"], made["image_grid_thw"], merge, pixels.new_ones(count)
        (side, _, most), (height, width) = self._limits(len(video)), pixels.shape[2:]
        # frames that were made small while they were read: the stock rule would enlarge them beyond the most
        small = height * width <= most < prod(self.read_size(len(video), height, width))
        small = small and height % side == width % side == 0
        options = {"do_sample_frames": False, "use_token_compression": False, "do_resize": not small}
        made = self.video_processor(videos=[pixels], return_tensors="pt", **options)
        patches, merge = made["pixel_values_videos"], made["video_merge_sizes"]
        return patches, made["video_grid_thw"], merge, self._changed(patches.unflatten(0, (len(video), -1)))

    def _changed(self, patches: Tensor) -> Tensor:
        """Which tokens of a video's patches [T,n,values] differ from the frame before by more than 0.1 of 255 levels,
        as the stock rule has it, of normalised pixels; and one of each frame: [N].
        """
        tokens = patches.unflatten(1, (-1, self.video_processor.merge_size**2)).flatten(2)
        changed = (tokens.diff(dim=0).abs().mean(-1) * 255 > 0.1) | (not self.video_processor.use_token_compression)
        changed[:, 0] |= ~changed.any(1)
        return torch.cat([torch.ones_like(tokens[:1, :, 0], dtype=torch.bool), changed]).flatten()

    def read_patches(self, patches: Tensor, grids: Tensor, merges: Tensor) -> list[FeatureGrid]:
        """Features [T,H,W,C] of videos from their patches [n,values], their `grids` [B,3] and `merges` [B]."""
        device = next(self.vision.parameters()).device
        shapes = [(t, h // m, w // m) for (t, h, w), m in zip(grids.tolist(), merges.tolist(), strict=True)]
        grids, merges = grids.to(device, non_blocking=True), merges.to(device, non_blocking=True)
        with encoding(self.vision):
            output = self.vision(patches.to(device, self.vision.dtype), grid_thw=grids, merge_sizes=merges)
        parts = output.last_hidden_state.split([t * h * w for t, h, w in shapes])
        return [FeatureGrid(part.unflatten(0, shape)) for part, shape in zip(parts, shapes, strict=True)]

    def project(self, encoded: Sequence[Grids], seconds: list[Tensor], need: frozenset[str]) -> list[VideoFeatures]:
        if "projected" not in need or not encoded:
            return [VideoFeatures((), grids, times) for grids, times in zip(encoded, seconds, strict=True)]
        grids = [each["video"] for each in encoded]
        patches = torch.cat([grid.values.flatten(0, 2) for grid in grids]).to(self.model.device, self.model.dtype)
        parts = self._inner.projector(patches).split([grid.tokens for grid in grids])
        return [
            VideoFeatures((replace(grid, values=part.unflatten(0, grid.values.shape[:3]), extra=()),), all, times)
            for grid, part, all, times in zip(grids, parts, encoded, seconds, strict=True)
        ]

    def encode_blank(self, encoded: Grids) -> int:
        steps, rows, columns = encoded["video"].values.shape[:3]
        config, merge = self.vision.config, (self.image_processor if steps == 1 else self.video_processor).merge_size
        grid = torch.tensor([[1, rows * merge, columns * merge]])
        values = config.num_channels * config.patch_size**2
        patches = torch.zeros(int(grid.prod()), values, device=next(self.vision.parameters()).device)
        self.read_patches(patches, grid, torch.tensor([merge]))
        return steps

    # ---- where tokens stand

    def append_newline_tokens(self, tokens: VideoTokens, video: VideoFeatures) -> VideoTokens:
        """Without the tokens that the model's own compression leaves out."""
        uncompressed = tokens.source is not None and len(tokens) == prod(video.grid)
        if uncompressed and not video.is_image and (marks := video.encoder["video"].extra):
            changed = marks[0].flatten().nonzero()[:, 0]
            tokens = tokens if len(changed) == len(tokens) else tokens.take(changed)
        return tokens

    def written(self, video: VideoFeatures, segment_steps: int) -> str:
        if video.is_image:
            return VIDEO_MARK
        return ",".join(f"Time {time:.1f}s:{VIDEO_MARK}" for time in video.seconds[::segment_steps].tolist())
