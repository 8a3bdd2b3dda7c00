"""Which patches a block of transformers' CLIP, SigLIP or InternViT attends to, from its queries and keys anew.

Letters: n frames, P patches, C width, h heads, E head width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from langdc.devices import at_once


def attention_received(block: Any, states: Tensor) -> Tensor:
    """Attention of each patch from its frame in a block that reads `states` [n,P,C]: [n,P] in float32, the mean over
    queries and heads, as VisionZip has it for encoders without a class token (arXiv 2412.04467, section 3.2).
    """
    attention = getattr(block, "self_attn", None) or block.attention
    normed = (getattr(block, "layer_norm1", None) or block.layernorm_before)(states)
    query, key = (
        getattr(attention, f"{name}_norm", nn.Identity())(getattr(attention, f"{name}_proj")(normed))
        .unflatten(-1, (attention.num_heads, -1))
        .transpose(1, 2)
        .flatten(0, 1)
        for name in ("q", "k")
    )
    step = at_once(4 * query.shape[1] * key.shape[1], states.device)
    received = [
        torch.softmax(some @ keys.mT * attention.scale, -1, dtype=torch.float32).mean(1)
        for some, keys in zip(query.split(step), key.split(step), strict=True)
    ]
    return torch.cat(received).unflatten(0, (-1, attention.num_heads)).mean(1)
