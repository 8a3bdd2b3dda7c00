"""Large models and their habits: how each encodes, prompts and splices."""

from typing import Any

from langdc import compat
from langdc.backbones import llava_onevision, llava_video, qwen2_5_vl, qwen2_vl, qwen3_vl, videogpt_plus
from langdc.backbones.base import backbone_of, backbones

__all__ = [
    "backbone_of",
    "backbones",
    "llava_onevision",
    "llava_video",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "videogpt_plus",
]


def __getattr__(name: str) -> Any:
    return compat.member(__name__, name)
