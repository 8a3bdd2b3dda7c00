"""A cache whose layers hold different numbers of keys, each with its own time line.

Only this module edits a cache. Dropped keys are really freed: what is kept is copied, so no view holds the old storage.

Letters: A rotary axes, G key heads, K keys cached, n tokens, E head width, L layers.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from langdc.rope import Rope


class KVLayer(DynamicLayer):
    """One layer's keys and values [1,G,K,E], and where the keys stand: `positions` [A,1 or G,K].

    `lag` [A]: how far this layer's time line is behind the prompt's positions, after keys were moved closer together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.positions: Tensor | None = None
        self.lag: tuple[int, ...] = ()

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.positions is not None:
            self.positions = self.positions[..., : -abs(tokens_to_remove)]


class KVCache(Cache):
    """The cache of one prompt. `expect` says what comes next, the model's layers fill it, `keep` evicts."""

    layers: list[KVLayer]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, layers: int, rope: Rope) -> None:
        super().__init__(layers=[KVLayer() for _ in range(layers)])
        self.rope = rope
        self._coming: Tensor | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many keys each layer holds."""
        return tuple(layer.get_seq_length() for layer in self.layers)

    @property
    def held_bytes(self) -> int:
        """Bytes of storage behind keys and values, counted once each."""
        tensors = [t for layer in self.layers for t in (layer.keys, layer.values) if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def expect(self, positions: Tensor, continuous: bool = False, axes: int = 1) -> None:
        """Announce tokens at `positions` [A,1,n]; `continuous`: in each layer they go on right after its last key.

        The first `axes` axes are moved for that, normally time alone.
        """
        self._coming = positions
        behind = [0] * len(self.layers)
        if continuous:
            last = self._last_times()
            behind = [int(positions[0, 0, 0]) - 1 - time for time in last]
        still = (0,) * (len(positions) - axes)
        for layer, distance in zip(self.layers, behind, strict=True):
            layer.lag = (distance,) * axes + still

    def _last_times(self) -> list[int]:
        if self.layers[0].positions is None:
            return [-1] * len(self.layers)
        ends = [layer.positions[0, :, -1].max() for layer in self.layers if layer.positions is not None]
        return torch.stack([end.to(ends[0].device) for end in ends]).tolist()

    def settle(self, time: int) -> None:
        """Move every layer's keys so that what comes next, at `time`, goes on right after them without a lag."""
        for layer, last in zip(self.layers, self._last_times(), strict=True):
            assert layer.keys is not None and layer.positions is not None
            distance = torch.zeros(len(layer.positions), 1, 1, dtype=torch.long, device=layer.keys.device)
            distance[0] = time - 1 - last
            if time - 1 != last:
                layer.keys = self.rope.shift(layer.keys, distance)
                layer.positions = layer.positions + distance

    def follow(self, layer: int, states: Tensor) -> Tensor:
        """Move rotated queries or keys [1,H,n,E] of the announced tokens onto a layer's own time line."""
        lag = self.layers[layer].lag
        if not any(lag):
            return states
        return self.rope.shift(states, -torch.tensor(lag, device=states.device)[:, None, None])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the announced tokens to a layer; all its keys and values come back."""
        assert self._coming is not None and self._coming.shape[-1] == key_states.shape[2], "expect() was not called"
        layer = self.layers[layer_idx]
        coming = self._coming.to(key_states.device)
        stands = coming - torch.tensor(layer.lag, device=coming.device)[:, None, None]
        if layer.positions is not None:
            stands = torch.cat([layer.positions, stands.expand(-1, layer.positions.shape[1], -1)], -1)
        layer.positions = stands
        return super().update(self.follow(layer_idx, key_states), value_states, layer_idx, *args, **kwargs)

    def keep(self, layer_idx: int, rows: Tensor, positions: Tensor | None = None) -> None:
        """Keep only `rows` ([n], or [G,n] per key head) of a layer, moved to where `positions` [A,1 or G,K] says."""
        layer = self.layers[layer_idx]
        assert layer.keys is not None and layer.values is not None and layer.positions is not None
        rows = rows.to(layer.keys.device)
        stood, stand = layer.positions, layer.positions if positions is None else positions
        everything = rows.ndim == 1 and len(rows) == layer.keys.shape[2]
        if not everything:
            layer.keys, layer.values = _take(layer.keys, rows), _take(layer.values, rows)
            stood, stand = _take_positions(stood, rows), _take_positions(stand, rows)
        if positions is not None:
            layer.keys = self._moved(layer.keys, stand - stood)
        layer.positions = stand

    def _moved(self, keys: Tensor, delta: Tensor) -> Tensor:
        moving = delta.ne(0).flatten(0, 1).any(0).nonzero()
        if not len(moving):
            return keys
        first = int(moving[0])
        return torch.cat([keys[:, :, :first], self.rope.shift(keys[:, :, first:], delta[..., first:])], 2)


def _take(states: Tensor, rows: Tensor) -> Tensor:
    if rows.ndim == 1:
        return states.index_select(2, rows)
    return states.gather(2, rows[None, :, :, None].expand(len(states), -1, -1, states.shape[-1]))


def _take_positions(positions: Tensor, rows: Tensor) -> Tensor:
    if rows.ndim == 1:
        return positions.index_select(2, rows)
    return positions.expand(-1, len(rows), -1).gather(2, rows[None].expand(len(positions), -1, -1))
