"""Qwen3.5: as Qwen3-VL without DeepStack, and most layers carry a state from token to token in place of keys."""

from langdc.backbones.base import backbones
from langdc.backbones.qwen3_vl import Qwen3VL


@backbones.register("qwen3_5")
class Qwen35(Qwen3VL):
    """Qwen3.5, dense; settings as for Qwen3-VL. A state cannot be evicted from, nor divided among questions: KV
    and layer compressors, packing and several questions a sequence are refused; replies are written one by one.
    """

    model_types = ("qwen3_5",)
