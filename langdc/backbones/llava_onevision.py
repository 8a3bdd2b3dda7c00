"""LLaVA-OneVision: frames pooled to half the side. Letters: T frames, H W token grid, C encoder width, N tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

from langdc.backbones.base import backbones
from langdc.backbones.stock import StockBackbone
from langdc.encoders.base import encoding
from langdc.encoders.saliency import attention_received
from langdc.timing import stage
from langdc.types import FeatureGrid, Frames, Grids, VideoFeatures, VideoTokens

FRAMES_AT_ONCE = 32
"""Frames per call of the encoder, to bound the memory of activations."""


@backbones.register("llava_onevision")
class LlavaOnevision(StockBackbone):
    """LLaVA-OneVision as transformers has it. Images are cut into crops and stand as one row of tokens."""

    model_types = ("llava_onevision",)
    placeholders: ClassVar[Mapping[str, str]] = {"video": "<video>", "image": "<image>"}
    image_processor_class = LlavaOnevisionImageProcessor
    video_processor_class = LlavaOnevisionVideoProcessor
    has_saliency = True

    @property
    def vision(self) -> Any:
        return self._inner.vision_tower

    @property
    def projectors(self) -> nn.ModuleDict:
        return nn.ModuleDict({"video": self._inner.multi_modal_projector})

    @property
    def pixel_side(self) -> int:
        """Pixels on a side of a frame."""
        return _side(self.model.config.vision_config.image_size)

    @property
    def patch_side(self) -> int:
        """Patches on a side of a frame."""
        return self.pixel_side // _side(self.model.config.vision_config.patch_size)

    @property
    def side(self) -> int:
        """H = W after pooling."""
        return math.ceil(self.patch_side / 2)

    @property
    def stream_widths(self) -> dict[str, int]:
        return {"video": self.model.config.vision_config.hidden_size}

    # ---- from frames to features

    def read_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        if frames == 1:
            return height, width  # an image is cut into crops at its own size
        size = self.video_processor.size
        return size["height"], size["width"]

    def _processor_settings(self) -> dict[str, Any]:
        size = {"height": self.pixel_side, "width": self.pixel_side}
        return {"size": size, "image_grid_pinpoints": self.model.config.image_grid_pinpoints}

    def encode(self, videos: list[Frames], need: frozenset[str] = frozenset(), synced: bool = False) -> list[Grids]:
        """Patches of every frame, and of every crop of an image (T crops), before the projector: [T,H',W',C]."""
        if not videos:
            return []
        with stage("preprocess"):
            pixels = [self._pixels(video) for video in videos]
        at_once = sum(map(len, pixels)) if synced else FRAMES_AT_ONCE
        grids = self.read_pixels(pixels, "saliency" in need, at_once)
        sizes = [(int(v.pixels.shape[2]), int(v.pixels.shape[3])) if len(v) == 1 else None for v in videos]
        return [{"video": replace(grid, size=size)} for grid, size in zip(grids, sizes, strict=True)]

    def _pixels(self, video: Frames) -> Tensor:
        """Normalised frames, or an image's crops: [T,3,height,width], on the encoder's device."""
        pixels = video.pixels.to(self.vision.device, non_blocking=True)
        if len(video) == 1:
            return self.image_processor(images=[pixels[0]], return_tensors="pt")["pixel_values"][0]
        result = self.video_processor(videos=[pixels], do_sample_frames=False, return_tensors="pt")
        return result["pixel_values_videos"][0]

    def read_pixels(
        self, pixels: Sequence[Tensor], saliency: bool = False, at_once: int = FRAMES_AT_ONCE
    ) -> list[FeatureGrid]:
        """Patches of normalised frames [T,3,height,width] at the layer that the checkpoint names: [T,H',W',C] each.
        `saliency`: with the attention each gets in the block before that layer, the last where it names several.
        """
        frames = torch.cat(list(pixels)).to(self.vision.device, self.vision.dtype)
        with encoding(self.vision):
            parts = [self._read(part, saliency) for part in frames.split(at_once)]
        lengths = list(map(len, pixels))

        def grids(column: Sequence[Any]) -> Sequence[Any]:
            if column[0] is None:
                return [None] * len(lengths)
            return torch.cat(list(column)).unflatten(1, (self.patch_side, self.patch_side)).split(lengths)

        return list(map(FeatureGrid, *map(grids, zip(*parts, strict=True))))

    def _read(self, pixels: Tensor, saliency: bool) -> tuple[Tensor, Tensor | None]:
        config = self.model.config
        states = self._states(pixels)
        named = config.vision_feature_layer
        layers = [named] if isinstance(named, int) else named
        chosen = torch.cat([states[layer] for layer in layers], -1)
        first = 1 if config.vision_feature_select_strategy == "default" else 0
        if not saliency:
            return chosen[:, first:], None
        layer = layers[-1] % len(states)
        with stage("saliency"):
            attended = attention_received(self._blocks[layer - 1], states[layer - 1])
        return chosen[:, first:], attended[:, first:]

    @property
    def _blocks(self) -> Any:
        return self.vision.encoder.layers

    def _states(self, pixels: Tensor) -> Sequence[Tensor]:
        """What goes into the encoder's first block, and what comes out of each."""
        return self.vision(pixels, output_hidden_states=True).hidden_states

    def project(self, encoded: Sequence[Grids], seconds: list[Tensor], need: frozenset[str]) -> list[VideoFeatures]:
        if "projected" not in need or not encoded:
            return [VideoFeatures((), grids, times) for grids, times in zip(encoded, seconds, strict=True)]
        grids = [each["video"] for each in encoded]
        frames = torch.cat([grid.values.flatten(1, 2) for grid in grids]).to(self.model.device, self.model.dtype)
        # one call where it learns, so that ranks make the same calls; else in parts, which take less memory
        at_once = len(frames) if torch.is_grad_enabled() else FRAMES_AT_ONCE
        projected = torch.cat([self._projected(part) for part in frames.split(at_once)])
        main = map(self._main, grids, projected.split([len(grid.values) for grid in grids]))
        return [VideoFeatures((one,), all, times) for one, all, times in zip(main, encoded, seconds, strict=True)]

    def _projected(self, patches: Tensor) -> Tensor:
        """Patches [T,H'*W',C] in backbone width."""
        return self._inner.multi_modal_projector(patches)

    def _main(self, grid: FeatureGrid, projected: Tensor) -> FeatureGrid:
        """The grid that the language model reads, of projected patches [T,H'*W',D]; an image's crops become one row."""
        if grid.size is not None:
            size = torch.tensor([grid.size])
            packed, _ = self._inner.pack_image_features(
                [projected], size, self._inner.image_newline, self.model.config.vision_aspect_ratio
            )
            return FeatureGrid(packed[0][None, None])
        saliency = grid.saliency
        if saliency is not None:
            saliency = self.pool(saliency.flatten(1)[..., None].to(self.model.device))[..., 0]
        return FeatureGrid(self.pool(projected), saliency)

    def pool(self, projected: Tensor) -> Tensor:
        """Projected patches [T,H'*W',D] to the grid that the language model reads [T,H,W,D]."""
        return self._inner.apply_pooling(projected).unflatten(1, (self.side, self.side))

    def encode_blank(self, encoded: Grids) -> int:
        grid = encoded["video"]
        frame = torch.zeros(1, 3, self.pixel_side, self.pixel_side, device=self.vision.device)
        self.read_pixels([frame], grid.saliency is not None)
        return len(grid.values)

    # ---- what the model adds to a video's tokens

    def append_newline_tokens(self, tokens: VideoTokens, video: VideoFeatures) -> VideoTokens:
        if video.is_image:
            return tokens
        return self.with_newlines(tokens, self.newlines_after(tokens, video))

    def newlines_after(self, tokens: VideoTokens, video: VideoFeatures) -> Tensor:
        """Number of newlines after each token: [N]."""
        count = tokens.segment.new_zeros(len(tokens))
        count[-1:] = 1
        return count

    def with_newlines(self, tokens: VideoTokens, count: Tensor) -> VideoTokens:
        """Tokens with `count` [N] newline embeddings after each, which come from no patch."""
        total = len(tokens) + int(count.sum())
        place = torch.arange(len(tokens), device=count.device) + count.cumsum(0) - count
        newline = self._inner.image_newline.to(tokens.values)
        values = newline.expand(total, -1).clone()
        values[place] = tokens.values

        def marks(given: Tensor | None) -> Tensor | None:
            return None if given is None else given.new_zeros(total).index_copy(0, place, given)

        segment, frame = tokens.segment.repeat_interleave(count + 1), tokens.frame
        anchor, padding = marks(tokens.anchor), marks(tokens.padding)
        if frame is not None and total > len(tokens) + 1:  # more than one at the end: as many in each frame
            frame = total * frame // len(tokens)
        marked = {"anchor": anchor, "padding": padding, "frame": frame}
        return replace(tokens, values=values, segment=segment, source=None, **marked)


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]
