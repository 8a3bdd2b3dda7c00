"""Tiny stock checkpoints, and the stock model's own answers to compare with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

from langdc import tiny
from langdc.backbones.stock import StockBackbone
from langdc.types import Frames
from langdc.video import write_video

NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_video", "internvl", "video_llama_3", "qwen3_5")
RECURRENT = ("qwen3_5",)
"""Those with layers that carry a state: one question a sequence, no keys evicted, replies one by one."""
KEYED = tuple(name for name in NAMES if name not in RECURRENT)
FPS = 2.0


def folder(name: str) -> str:
    """The checkpoint directory of a family."""
    return str(tiny.folder(name))


def clip(number: int = 0, count: int = 8, height: int = 24, width: int = 32) -> Frames:
    """A video of slowly changing noise; a picture for `count` 1."""
    dice = torch.Generator().manual_seed(number)
    still = torch.rand(1, 3, height, width, generator=dice)
    change = torch.rand(count, 3, height, width, generator=dice)
    return Frames(((0.7 * still + 0.3 * change) * 255).to(torch.uint8), torch.arange(count) / FPS)


def mp4(directory: Path, count: int, fps: int) -> Path:
    """A file of `count` frames of such a clip."""
    path = directory / "clip.mp4"
    pixels = clip(0, count=count, height=48, width=64).pixels.permute(0, 2, 3, 1)
    write_video(path, np.ascontiguousarray(pixels.numpy()), fps)
    return path


def conversation(media: Sequence[Frames], text: str = "what is in the video ?") -> list[dict]:
    """A question after videos and pictures, in order, with words between them."""
    parts: list[dict] = []
    for shown in media:
        parts += [{"type": "image" if len(shown) == 1 else "video"}, {"type": "text", "text": " and "}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def stock_inputs(backbone: StockBackbone, name: str, media: Sequence[Frames]) -> dict[str, Any]:
    """What transformers' own processor makes of the conversation."""
    text = backbone.tokenizer.apply_chat_template(conversation(media), tokenize=False, add_generation_prompt=True)
    pictures = [shown.pixels[0] for shown in media if len(shown) == 1]
    videos = [shown.pixels for shown in media if len(shown) > 1]
    settings: dict[str, Any] = {}
    if videos:
        about = [VideoMetadata(len(v), FPS, frames_indices=list(range(len(v)))) for v in videos]
        settings["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": about}
        if name == "qwen2_5_vl":
            settings["videos_kwargs"]["fps"] = FPS
    found = AutoProcessor.from_pretrained(backbone.source)(
        text=[text], images=pictures or None, videos=videos or None, return_tensors="pt", **settings
    )
    return dict(found)


def learning_inputs(backbone: StockBackbone, name: str, video: Frames, messages: list[dict]) -> dict[str, Any]:
    """What transformers' own processor makes of a conversation with its reply, for the stock model's loss."""
    text = backbone.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    about = [VideoMetadata(len(video), FPS, frames_indices=list(range(len(video))))]
    settings: dict[str, Any] = {"do_sample_frames": False, "video_metadata": about}
    if name == "qwen2_5_vl":
        settings["fps"] = FPS
    processor = AutoProcessor.from_pretrained(backbone.source)
    return dict(processor(text=[text], videos=[video.pixels], return_tensors="pt", videos_kwargs=settings))


@torch.no_grad()
def stock_logits(backbone: StockBackbone, inputs: dict[str, Any]) -> Tensor:
    """The stock model's logits after the prompt."""
    return backbone.model(**inputs).logits[:, -1]


def stock_reply(backbone: StockBackbone, inputs: dict[str, Any], **options) -> list[int]:
    """The ids that the stock model writes."""
    found = backbone.model.generate(**inputs, do_sample=False, **options)
    return found[0, inputs["input_ids"].shape[1] :].tolist()
