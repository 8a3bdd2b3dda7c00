"""Sizes of the published parts that the recipes name, so that they can be planned where their weights are not.

As their `config.json` says; a directory that is here is read instead.
"""

from pathlib import Path
from typing import Any


def _qwen(width: int, layers: int, heads: int, mlp: int, vocabulary: int = 151936, tied: bool = True) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 4 if width == 3584 else 2,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _qwen(896, 24, 14, 4864),
    "qwen2.5-1.5b": _qwen(1536, 28, 12, 8960),
    "qwen2.5-3b": _qwen(2048, 36, 16, 11008),
    "qwen2.5-7b": _qwen(3584, 28, 28, 18944, 152064, tied=False),
    "phi-3-mini": {
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 8192,
        "vocab_size": 32064,
        "pad_token_id": 0,
    },
    "clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": 336,
        "patch_size": 14,
    },
    "internvideo2-stage2-1b-224p-f4": {},  # the encoder's defaults
}


def published(source: str) -> dict[str, Any] | None:
    """The sizes of a part by the name of its directory; None for one that is not known."""
    name = Path(source).name.lower()
    return next((sizes for start, sizes in PUBLISHED.items() if name.startswith(start)), None)
