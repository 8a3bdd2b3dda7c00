"""The InternVideo2 stage-2 vision encoder, a video transformer, its parameters named as published (`vision_encoder.*`).

Letters: B clips, T frames, H W patch grid, C width, h heads.
Source: InternVideo2 (arXiv 2403.15377), the `1B-224p-f4` encoder.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from langdc.config import Settings


class InternVideo2Config(Settings):
    """Sizes of the encoder; the defaults are the published 1B model for 4 frames of 224 pixels."""

    width: int = Field(default=1408, gt=0)
    depth: int = Field(default=40, gt=0)
    heads: int = Field(default=16, gt=0)
    mlp_width: int = Field(default=6144, gt=0)
    image_size: int = Field(default=224, gt=0)
    patch_size: int = Field(default=14, gt=0)
    frames: int = Field(default=4, gt=0)
    skip_last: int = 1  # VideoGPT+ and LangDC read the output before the last block, without a final norm
    init_scale: float = 1e-5  # of the LayerScale gains

    @property
    def side(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size


class _RMSNorm(nn.RMSNorm):
    """RMS norm over the width; weights in the input's type, as the fused kernels need them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class _LayerScale(nn.Module):
    """A learned gain per channel. One product is rounded once: equal to the published code's way through float32."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), scale))

    def forward(self, values: Tensor) -> Tensor:
        return (values * self.gamma).to(values.dtype)


class _Attention(nn.Module):
    """Full self-attention; queries and keys are RMS-normalised over the whole width, before the head split."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.q_norm = _RMSNorm(width, eps=1e-6)
        self.k_norm = _RMSNorm(width, eps=1e-6)

    def forward(self, values: Tensor) -> Tensor:
        query, key, value = self.qkv(values).chunk(3, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_norm(query), self.k_norm(key), value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(-2))


class _Block(nn.Module):
    """A pre-norm transformer block with LayerScale on both branches."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.norm1 = _RMSNorm(config.width, eps=1e-6)
        self.attn = _Attention(config.width, config.heads)
        self.ls1 = _LayerScale(config.width, config.init_scale)
        self.norm2 = _RMSNorm(config.width, eps=1e-6)
        inner, outer = nn.Linear(config.width, config.mlp_width), nn.Linear(config.mlp_width, config.width)
        self.mlp = nn.Sequential(OrderedDict(fc1=inner, gelu=nn.GELU(), fc2=outer))
        self.ls2 = _LayerScale(config.width, config.init_scale)

    def forward(self, values: Tensor) -> Tensor:
        values = values + self.ls1(self.attn(self.norm1(values)))
        return values + self.ls2(self.mlp(self.norm2(values)))


class InternVideo2(nn.Module):
    """Clips [B,T,3,height,width] of `config.frames` frames (or one) to patch vectors [B,T,H,W,C]; else ValueError."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.config = config
        patches, patch = config.side**2, (1, config.patch_size, config.patch_size)
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv3d(3, config.width, patch, patch)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.frames * patches + 1, config.width))
        self.img_pos_embed = nn.Parameter(torch.zeros(1, patches + 1, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))

    def reset_parameters(self) -> None:
        """Draw fresh weights: positions and class token from a normal of 0.02, linear layers as torch does."""
        for table in (self.cls_token, self.pos_embed, self.img_pos_embed):
            nn.init.normal_(table, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.with_class_token(pixels)[:, 1:]
        side = self.config.side
        return grid.unflatten(1, (pixels.shape[1], side, side))

    def with_class_token(self, pixels: Tensor) -> Tensor:
        """As `forward`, flattened and with the class token in front: [B, 1+T*H*W, C]."""
        frames = pixels.shape[1]
        tables = {1: self.img_pos_embed, self.config.frames: self.pos_embed}
        if frames not in tables:
            raise ValueError(
                f"InternVideo2 was given clips of {frames} frames; this model takes {self.config.frames}, or 1 for an "
                "image. Choose frames_per_segment to match."
            )
        patches = self.patch_embed(pixels.transpose(1, 2)).flatten(2).transpose(1, 2)
        values = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1) + tables[frames]
        for block in self.blocks[: self.config.depth - self.config.skip_last]:
            values = block(values)
        return values
