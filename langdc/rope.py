"""Rotary positions after the fact: moving keys that were rotated already, and stretching a model's range (YaRN).

A rotation by a position is undone or changed by a rotation by the difference, so nothing needs the projections again. A
model's own `rotary_emb` makes the angles, which is why 1-axis models and 3-axis ones (M-RoPE, in sections or
interleaved) need no code of their own.

Letters: A rotary axes (1, or 3 for M-RoPE), B batch, H heads, n tokens, E head width.
"""

from typing import Any

import torch
from torch import Tensor, nn

FIXED_FREQUENCIES = ("default", "linear", "yarn", "llama3", "proportional")
"""Kinds of rotary embedding whose frequencies do not depend on the length of the input."""


def yarn(config: Any, factor: float, beta_fast: float = 32.0, beta_slow: float = 1.0) -> None:
    """Stretch a text config's range of positions `factor` times with YaRN (arXiv 2309.00071), before the model is made.

    ReTaKe and AdaReTaKe use factor 4. Raises ValueError for a factor below 1, and for a config without rotary settings
    or with ones that stretch already.
    """
    if factor < 1:
        raise ValueError(f"A YaRN factor of {factor} would shrink the range of positions; give 1 or more, such as 4.")
    old = getattr(config, "rope_parameters", None)
    if not isinstance(old, dict) or "rope_theta" not in old:
        raise ValueError(f"{type(config).__name__} has no rotary settings of one kind; give the text model's config.")
    kind = old.get("rope_type", "default")
    if kind != "default":
        raise ValueError(f"{type(config).__name__} has {kind!r} rotary positions already; leave out yarn.")
    kept = {name: value for name, value in old.items() if name not in ("rope_type", "type")}
    config.rope_parameters = {
        **kept,
        "rope_type": "yarn",
        "factor": float(factor),
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "original_max_position_embeddings": config.max_position_embeddings,
    }


class Rope:
    """The rotations of one model, made by its `rotary_emb`."""

    def __init__(self, rotary: nn.Module) -> None:
        self.rotary = rotary
        self.kind = str(getattr(rotary, "rope_type", "default"))
        self.scaling = float(getattr(rotary, "attention_scaling", 1.0))

    def shift(self, states: Tensor, delta: Tensor) -> Tensor:
        """Move rotated queries or keys [B,H,n,E] by `delta` [A,1 or H,n] positions."""
        return self._turn(states, delta, self.scaling)

    def strip(self, states: Tensor, positions: Tensor) -> Tensor:
        """Take the rotation (and YaRN's scale) off queries or keys [B,H,n,E] that stand at `positions` [A,1 or H,n]."""
        return self._turn(states, -positions, self.scaling**2)

    def _turn(self, states: Tensor, angles: Tensor, divisor: float) -> Tensor:
        if self.kind not in FIXED_FREQUENCIES:
            raise ValueError(
                f"Keys under {self.kind!r} rotary positions cannot be moved: their frequencies follow the input's "
                f"length. Give reforge=False, or a model with one of {', '.join(FIXED_FREQUENCIES)}."
            )
        probe = torch.empty(0, dtype=torch.float32, device=states.device)
        cos, sin = self.rotary(probe, angles[0] if len(angles) == 1 else angles)
        cos, sin = cos[None] / divisor, sin[None] / divisor
        width = cos.shape[-1]
        turned = states[..., :width].float()
        half = torch.cat([-turned[..., width // 2 :], turned[..., : width // 2]], -1)
        turned = (turned * cos + half * sin).to(states.dtype)
        return turned if width == states.shape[-1] else torch.cat([turned, states[..., width:]], -1)
