"""Tiny random models for tests: real classes and the sample tokenizer, sizes that a test can afford."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor

from examples.sample_world.tokenizer import build_tokenizer
from langdc.captioner import Captioner
from langdc.config import MemberConfig, ModelConfig
from langdc.model import VideoModel
from langdc.types import FeatureGrid, Frames, VideoFeatures, VideoTokens

INTERNVIDEO2 = {"width": 32, "depth": 3, "heads": 2, "mlp_width": 64, "image_size": 16, "patch_size": 4}
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 48, "image_size": 24, "patch_size": 4,
}  # fmt: skip
BACKBONE_WIDTH, CAPTIONER_WIDTH = 48, 32
PROMPT = "describe the segment ."


@cache
def tokenizer_folder() -> str:
    """A directory with the sample tokenizer."""
    folder = Path(mkdtemp(prefix="tokenizer"))
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@cache
def tokenizer():
    """The sample tokenizer."""
    return build_tokenizer()


def random_weights(config: dict) -> dict:
    """A source of random weights."""
    return {"config": config, "init": "random"}


def qwen2(width: int = CAPTIONER_WIDTH, layers: int = 3, **changes) -> dict:
    """The source of a small Qwen2 that knows the sample tokenizer's ids; large initial weights make states differ."""
    sizes = {
        "model_type": "qwen2", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 2 * width, "vocab_size": len(tokenizer()),
        "tie_word_embeddings": True, "initializer_range": 0.2,
    }  # fmt: skip
    return random_weights({**sizes, **changes})


def captioner(seed: int = 0, source: dict | None = None, **settings) -> Captioner:
    """A small captioner, 3 layers of width 32 unless `source` says otherwise."""
    torch.manual_seed(seed)
    settings = {"prompt": PROMPT, "layer": 2, "max_soft_tokens": 12, "tokenizer": tokenizer_folder(), **settings}
    return Captioner(source or qwen2(), **settings).eval()


def backbone_settings(**changes) -> dict:
    """Settings of a small VideoGPT+ backbone: 6x6 image patches and 4x4 video patches per frame."""
    return {
        "language_model": qwen2(BACKBONE_WIDTH),
        "tokenizer": tokenizer_folder(),
        "image_encoder": {"name": "image", "source": random_weights(CLIP)},
        "video_encoder": {"name": "internvideo2", "source": random_weights(INTERNVIDEO2)},
        **changes,
    }


def langdc_settings(**changes) -> dict:
    """Settings of a small LangDC compressor: 9 + 4 visual tokens per frame."""
    return {
        "captioner": qwen2(), "captioner_tokenizer": tokenizer_folder(), "prompt": PROMPT, "layer": 2, "pool": [3, 2],
        "max_soft_tokens": 6, **changes,
    }  # fmt: skip


COMPRESSORS = {"langdc": langdc_settings(), "pool": {"sides": [3, 2]}}


def config(compressor: str = "langdc", backbone: dict | None = None, **changes) -> ModelConfig:
    """What a small model is built from; `changes` are settings of the compressor."""
    settings = {**COMPRESSORS.get(compressor, {}), **changes}
    return ModelConfig(
        backbone=MemberConfig(name="videogpt_plus", **(backbone or backbone_settings())),
        compressor=MemberConfig(name=compressor, **settings),
    )


def model(compressor: str = "langdc", seed: int = 0, backbone: dict | None = None, **changes) -> VideoModel:
    """A small model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return VideoModel(config(compressor, backbone, **changes)).eval()


def frames(number: int = 0, count: int = 16, size: int = 20) -> Frames:
    """A video of noise."""
    dice = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=dice)
    return Frames(pixels, torch.arange(count) / 8)


def features(
    number: int = 0, count: int = 16, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (6, 6)
) -> VideoFeatures:
    """Features as the small backbone makes them, of noise: leaf tensors, so that gradients can be looked at.

    `size`: of the image grid; the video grid has two thirds of its rows and columns.
    """
    dice = torch.Generator().manual_seed(number)
    smaller = size[0] * 2 // 3, size[1] * 2 // 3

    def grid(shape: tuple[int, int], width: int) -> FeatureGrid:
        return FeatureGrid(torch.randn(count, *shape, width, generator=dice).to(dtype))

    main = (grid(size, BACKBONE_WIDTH), grid(smaller, BACKBONE_WIDTH))
    encoded = {"image": grid(size, CLIP["hidden_size"]), "video": grid(smaller, INTERNVIDEO2["width"])}
    return VideoFeatures(main, encoded, torch.arange(count) / 8)


def video_tokens(count: int, number: int = 0, width: int = BACKBONE_WIDTH) -> VideoTokens:
    """Tokens of noise, all of one segment."""
    values = torch.randn(count, width, generator=torch.Generator().manual_seed(number))
    return VideoTokens(values, torch.zeros(count, dtype=torch.long))


def visual(lengths: list[int], seed: int = 0, width: int = CAPTIONER_WIDTH) -> list[Tensor]:
    """Visual tokens of segments, for a captioner."""
    dice = torch.Generator().manual_seed(seed)
    return [torch.randn(length, width, generator=dice) for length in lengths]
