"""Large models and their habits: how each encodes, prompts and splices."""

from langdc.hosts import llava_onevision, llava_video, qwen2_5_vl, qwen2_vl, qwen3_vl, videogpt_plus
from langdc.hosts.base import host_of, hosts

__all__ = [
    "host_of",
    "hosts",
    "llava_onevision",
    "llava_video",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "videogpt_plus",
]
