"""Rotary positions: moving states that were rotated already, and stretching a model's range of positions (YaRN).

A rotation by a difference changes a position without the projections; a model's own `rotary_emb` makes the angles, so
1-axis and 3-axis models (M-RoPE) need no code of their own.
Letters: A rotary axes (1 or 3), B batch, H heads, n tokens, E head width.
"""

from typing import Any

import torch
from torch import Tensor, nn

_FIXED_FREQUENCIES = ("default", "linear", "yarn", "llama3", "proportional")
"""Kinds of rotary embedding whose frequencies do not depend on the input's length."""


def yarn(config: Any, factor: float) -> None:
    """Stretch a text config's range of positions `factor` times with YaRN (arXiv 2309.00071), before the model is made.
    ValueError for a factor below 1, and for a config without rotary settings, or with ones that stretch already.
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
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": config.max_position_embeddings,
    }


def position_limit(config: Any) -> int | None:
    """How many positions a model was made for, stretched ones included; None where its config does not say."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    stretched = int((rope.get("original_max_position_embeddings") or 0) * (rope.get("factor") or 1))
    return max(getattr(text, "max_position_embeddings", None) or 0, stretched) or None


class Rope:
    """The rotary embedding of one model, computed by its `rotary_emb`."""

    def __init__(self, rotary: nn.Module) -> None:
        self.rotary = rotary
        self.rope_type = str(getattr(rotary, "rope_type", "default"))
        self.scaling = float(getattr(rotary, "attention_scaling", 1.0))

    def rerotate(self, states: Tensor, delta: Tensor) -> Tensor:
        """Rotated queries or keys [B,H,n,E] at positions that are `delta` [A,1 or H,n] further."""
        return self.turn(states, *self.angles(delta))

    def angles(self, delta: Tensor, divisor: float | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1 or H,n,E] for `turn` by `delta` [A,1 or H,n], without YaRN's scale (or `divisor`). The
        sines have the sign that they get in the first half of a head. ValueError where keys cannot be moved.
        """
        if self.rope_type not in _FIXED_FREQUENCIES:
            raise ValueError(
                f"Keys under {self.rope_type!r} rotary positions cannot be moved: their frequencies follow the input's "
                f"length. Give compact_positions=False, or a model with one of {', '.join(_FIXED_FREQUENCIES)}."
            )
        probe = torch.empty(0, dtype=torch.float32, device=delta.device)
        cos, sin = self.rotary(probe, delta[0] if len(delta) == 1 else delta)
        if (divisor := self.scaling if divisor is None else divisor) != 1:
            cos, sin = cos / divisor, sin / divisor
        sin[..., : sin.shape[-1] // 2].neg_()
        return cos, sin

    def turn(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """States [B,H,n,E] rotated by `angles` [1 or H,n,E], computed in float32."""
        width = cos.shape[-1]
        turning = states[..., :width]
        # types are promoted: low precision is read as it is, and rounded once
        turned = (turning * cos).addcmul_(turning.roll(width // 2, -1), sin).to(states.dtype)
        return turned if width == states.shape[-1] else torch.cat([turned, states[..., width:]], -1)
