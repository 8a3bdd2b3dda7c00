"""A key-value cache whose layers hold different numbers of keys; only this module edits it, and evicting frees memory.

Letters: A rotary axes, G key heads, H heads (of queries or keys), K keys cached, n tokens, E head width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from langdc.rope import Rope


class _KVLayer(DynamicLayer):
    """One layer's keys and values [1,G,K,E] with their `positions` [A,1 or G,K].
    `offset` [A]: how far these are behind the prompt's, after position compaction.
    """

    def __init__(self) -> None:
        super().__init__()
        self.positions: Tensor | None = None
        self.offset: tuple[int, ...] = ()

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.positions is not None:
            self.positions = self.positions[..., : -abs(tokens_to_remove)]


class KVCache(Cache):
    """The cache of one prompt: `announce` sets the next positions, the model's layers add keys, `keep` evicts."""

    layers: list[_KVLayer]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, layers: int, rope: Rope) -> None:
        super().__init__(layers=[_KVLayer() for _ in range(layers)])
        self.rope = rope
        self._announced: Tensor | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of keys in each layer."""
        return tuple(layer.get_seq_length() for layer in self.layers)

    @property
    def held_bytes(self) -> int:
        """Bytes of storage of keys and values, shared storage counted once."""
        tensors = [t for layer in self.layers for t in (layer.keys, layer.values) if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def announce(self, positions: Tensor, continuous: bool = False, axes: int = 1) -> None:
        """Set the positions [A,1,n] of the next tokens.

        `continuous`: in each layer they follow its last key directly; so the first `axes` axes are offset per layer.
        """
        self._announced = positions
        offsets = [0] * len(self.layers)
        if continuous:
            offsets = [int(positions[0, 0, 0]) - 1 - time for time in self._last_times()]
        for layer, offset in zip(self.layers, offsets, strict=True):
            layer.offset = (offset,) * axes + (0,) * (len(positions) - axes)

    def _last_times(self) -> list[int]:
        if self.layers[0].positions is None:
            return [-1] * len(self.layers)
        ends = [layer.positions[0, :, -1].max() for layer in self.layers if layer.positions is not None]
        return torch.stack([end.to(ends[0].device) for end in ends]).tolist()

    def close_gaps(self, time: int) -> None:
        """Move every layer's keys so that the next token, at `time`, follows the last one directly with offset 0."""
        for layer, last in zip(self.layers, self._last_times(), strict=True):
            assert layer.keys is not None and layer.positions is not None
            distance = torch.zeros(len(layer.positions), 1, 1, dtype=torch.long, device=layer.keys.device)
            distance[0] = time - 1 - last
            if time - 1 != last:
                layer.keys = self.rope.rerotate(layer.keys, distance)
                layer.positions = layer.positions + distance

    def apply_offset(self, layer: int, states: Tensor) -> Tensor:
        """Rotated queries or keys [1,H,n,E] of the announced tokens at the layer's own positions."""
        offset = self.layers[layer].offset
        if not any(offset):
            return states
        return self.rope.rerotate(states, -torch.tensor(offset, device=states.device)[:, None, None])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the announced tokens to a layer; returns all its keys and values."""
        assert self._announced is not None and self._announced.shape[-1] == key_states.shape[2], (
            "announce() was not called"
        )
        layer = self.layers[layer_idx]
        announced = self._announced.to(key_states.device)
        positions = announced - torch.tensor(layer.offset, device=announced.device)[:, None, None]
        if layer.positions is not None:
            positions = torch.cat([layer.positions, positions.expand(-1, layer.positions.shape[1], -1)], -1)
        layer.positions = positions
        return super().update(self.apply_offset(layer_idx, key_states), value_states, layer_idx, *args, **kwargs)

    def keep(self, layer_idx: int, rows: Tensor, positions: Tensor | None = None) -> None:
        """Evict all keys of a layer but `rows` ([n], or [G,n] per key head); `positions` [A,1 or G,K]: new ones."""
        layer = self.layers[layer_idx]
        assert layer.keys is not None and layer.values is not None and layer.positions is not None
        rows = rows.to(layer.keys.device)
        old, new = layer.positions, layer.positions if positions is None else positions
        if rows.ndim > 1 or len(rows) < layer.keys.shape[2]:
            layer.keys, layer.values = _take(layer.keys, rows), _take(layer.values, rows)
            old, new = _take(old, rows), _take(new, rows)
        layer.positions = new
        if positions is not None and len(moving := new.ne(old).flatten(0, 1).any(0).nonzero()):
            first = int(moving[0])
            moved = self.rope.rerotate(layer.keys[:, :, first:], (new - old)[..., first:])
            layer.keys = torch.cat([layer.keys[:, :, :first], moved], 2)


def _take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Keys or values [1,G,K,E], or positions [A,1 or G,K], at `rows` [n] or [G,n]."""
    if rows.ndim == 1:
        return tensor.index_select(2, rows)
    tensor = tensor.expand(-1, len(rows), *tensor.shape[2:])
    index = rows.reshape(1, *rows.shape, *[1] * (tensor.ndim - 3))
    return tensor.gather(2, index.expand(len(tensor), -1, -1, *tensor.shape[3:]))
