"""LLaVA-OneVision: frames through SigLIP, pooled to half the side, one newline embedding after the video.

Letters: T frames, H W token grid, P = H*W, C encoder width, D backbone width, N tokens.
"""

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
from langdc.encoders.saliency import attention_received, saliency_flops
from langdc.metering import matmul_flops, patch_flops, transformer_flops
from langdc.timing import stage
from langdc.types import FeatureGrid, Frames, VideoFeatures, VideoTokens

FRAMES_AT_ONCE = 32
"""Frames that the encoder sees in one call; activations of more would fill memory for nothing."""


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
    def patch_side(self) -> int:
        """Patches on a side of a frame."""
        config = self.model.config.vision_config
        return config.image_size // config.patch_size

    @property
    def side(self) -> int:
        """H = W after pooling."""
        return math.ceil(self.patch_side / 2)

    @property
    def stream_widths(self) -> dict[str, int]:
        return {"video": self.model.config.vision_config.hidden_size}

    @property
    def stream_sides(self) -> dict[str, int]:
        return {"video": self.patch_side}

    # ---- from frames to features

    def read_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        if frames == 1:
            return height, width  # an image is cut into crops at its own size
        size = self.video_processor.size
        return size["height"], size["width"]

    def _processor_settings(self) -> dict[str, Any]:
        config = self.model.config
        side = config.vision_config.image_size
        size = {"size": {"height": side, "width": side}}
        return {**size, "image_grid_pinpoints": config.image_grid_pinpoints}

    def encode_one(self, video: Frames, need: frozenset[str] = frozenset()) -> Mapping[str, FeatureGrid]:
        if len(video) == 1:
            return {"image": self._look_at_image(video)}
        with stage("preprocess"):
            found = self.video_processor(videos=[video.pixels], do_sample_frames=False, return_tensors="pt")
        return {"video": self.read_pixels(found["pixel_values_videos"][0], "saliency" in need)}

    def _look_at_image(self, image: Frames) -> FeatureGrid:
        with stage("preprocess"):
            found = self.image_processor(images=[image.pixels[0]], return_tensors="pt")
        pixels = found["pixel_values"].to(self.model.device, self.model.dtype)
        packed = self._inner.get_image_features(pixels, found["image_sizes"]).pooler_output[0]
        return FeatureGrid(packed[None, None])

    @torch.no_grad()
    def read_pixels(self, pixels: Tensor, saliency: bool = False) -> FeatureGrid:
        """Patches of normalised frames [T,3,height,width] at the layer that the checkpoint names: [T,H',W',C].

        `saliency`: also how much attention each gets in the block before that layer, the last where it names several.
        """
        pixels = pixels.to(self.model.device, self.model.dtype)
        parts = [self._read(part, saliency) for part in pixels.split(FRAMES_AT_ONCE)]
        patches, attended = (
            torch.cat(column).unflatten(1, (self.patch_side, self.patch_side)) if column[0] is not None else None
            for column in zip(*parts, strict=True)
        )
        assert patches is not None
        return FeatureGrid(patches, attended)

    def _read(self, pixels: Tensor, saliency: bool) -> tuple[Tensor, Tensor | None]:
        config = self.model.config
        states = self.vision(pixels, output_hidden_states=True).hidden_states
        named = config.vision_feature_layer
        layers = [named] if isinstance(named, int) else named
        chosen = torch.cat([states[layer] for layer in layers], -1)
        attended = None
        if saliency:
            layer = layers[-1] % len(states)
            with stage("saliency"):
                attended = attention_received(self.vision.encoder.layers[layer - 1], states[layer - 1])
        first = 1 if config.vision_feature_select_strategy == "default" else 0
        return chosen[:, first:], attended if attended is None else attended[:, first:]

    def project(
        self, encoded: Sequence[Mapping[str, FeatureGrid]], seconds: list[Tensor], need: frozenset[str]
    ) -> list[VideoFeatures]:
        return [VideoFeatures((self._main(grids),), grids, t) for grids, t in zip(encoded, seconds, strict=True)]

    def _main(self, grids: Mapping[str, FeatureGrid]) -> FeatureGrid:
        if "image" in grids:
            return grids["image"]
        patches = grids["video"].values.flatten(1, 2).to(self.model.device, self.model.dtype)
        parts = [self.pool(self._inner.multi_modal_projector(part)) for part in patches.split(FRAMES_AT_ONCE)]
        saliency = grids["video"].saliency
        if saliency is not None:
            saliency = self.pool(saliency.flatten(1)[..., None].to(self.model.device))[..., 0]
        return FeatureGrid(torch.cat(parts), saliency)

    def pool(self, projected: Tensor) -> Tensor:
        """Projected patches [T,H'*W',D] to the grid that the language model reads [T,H,W,D]."""
        return self._inner.apply_pooling(projected).unflatten(1, (self.side, self.side))

    def encoder_flops(self, encoded: Mapping[str, FeatureGrid]) -> float:
        config = self.model.config.vision_config
        patches, wide, heads = self.patch_side**2, config.hidden_size, config.num_attention_heads
        shape = next(iter(encoded.values())).values.shape
        # an image's crops are packed into one row of tokens, and projected before
        seen = shape[0] if "video" in encoded else max(1, round(shape[2] / patches))
        projected = 0.0 if "video" in encoded else matmul_flops(patches, wide + self.width, self.width)
        blocks = transformer_flops(
            config.num_hidden_layers, wide, heads, heads, wide // heads, config.intermediate_size, patches, gated=False
        )
        attended = saliency_flops(wide, patches) if any(grid.saliency is not None for grid in encoded.values()) else 0.0
        return seen * (blocks + patch_flops(wide, config.patch_size, patches) + attended + projected)

    # ---- what the model adds to a video's tokens

    def append_newline_tokens(self, tokens: VideoTokens, video: VideoFeatures) -> VideoTokens:
        if self.is_image(video):
            return tokens
        return self.with_newlines(tokens, self.newlines_after(tokens))

    def newlines_after(self, tokens: VideoTokens) -> Tensor:
        """How many newlines follow each token: [N]."""
        count = tokens.segment.new_zeros(len(tokens))
        count[-1:] = 1
        return count

    def with_newlines(self, tokens: VideoTokens, count: Tensor) -> VideoTokens:
        """Tokens with `count` [N] newline embeddings after each; they have no place in the grid."""
        total = len(tokens) + int(count.sum())
        place = torch.arange(len(tokens), device=count.device) + count.cumsum(0) - count
        newline = self._inner.image_newline.to(tokens.values)
        values = newline.expand(total, -1).clone()
        values[place] = tokens.values
        anchor = None
        if tokens.anchor is not None:
            anchor = tokens.anchor.new_zeros(total)
            anchor[place] = tokens.anchor
        segment = tokens.segment.repeat_interleave(count + 1)
        return replace(tokens, values=values, segment=segment, source=None, anchor=anchor)
