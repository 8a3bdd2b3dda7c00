"""A key-value cache whose layers hold different numbers of keys; only this module edits it.

A layer's tensors have room for what comes, so nothing is copied to append, and evicting moves only kept keys, in place.
`fit` frees the room that is left.
Letters: A rotary axes, B batch, G key heads, H heads (of queries or keys), K keys cached, n tokens, E head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from langdc.rope import Rope

_ROOM = 256
"""Further tokens that a layer has room for when it grows; for half of its tokens where as many come at once."""
_BLOCK = 4096
"""Keys moved at once, so that no second copy of a layer is needed."""


def recurrent_layers(config: Any) -> int:
    """How many layers carry a state from token to token in place of keys, which no mask divides."""
    return [*(getattr(config, "layer_types", None) or ())].count("linear_attention")


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes that all layers of a text model together hold of one token: a key and a value per key head."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers - recurrent_layers(config)
    return 2 * layers * config.num_key_value_heads * width * dtype.itemsize


class _KVLayer(DynamicLayer):
    """One layer's keys and values [B,G,K,E], with their `positions` [A,1 or G,K] and their `rows` [1 or G,K] of the
    prompt (-1: no row). All are views of what is filled of the layer's tensors, whose tokens come before their heads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.positions: Tensor | None = None
        self.rows: Tensor | None = None
        self.coming: Tensor | None = None
        self.turn: tuple[Tensor, Tensor] | None = None
        self._held: list[Tensor] = []  # keys and values [B,capacity,G,E], positions and rows [A+1,capacity,1 or G]
        self._shown: Tensor | None = None

    def append(self, key: Tensor, value: Tensor, room: int = 0) -> None:
        """Add `coming` tokens with keys and values [B,G,n,E]; `room` for how many there will be in all, if known."""
        if not self.is_initialized:
            self.lazy_initialization(key, value)
        assert self.coming is not None
        new = [key.transpose(1, 2), value.transpose(1, 2), self.coming.to(key.device)]
        start = self.get_seq_length()
        stop = start + key.shape[2]
        if self.keys is not self._shown:  # transformers repeated or reordered rows of a batch
            assert self.keys is not None and self.values is not None
            self._held[:2] = [self.keys.transpose(1, 2), self.values.transpose(1, 2)] if start else []
        if not self._held:
            self._grow([part[:, :0] for part in new], max(room, stop))
        elif stop > min(part.shape[1] for part in self._held):
            more = _ROOM if stop - start < _ROOM else stop // 2
            self._grow([part[:, :start] for part in self._held], max(room, stop + more))
        for held, part in zip(self._held, new, strict=True):
            held[:, start:stop] = part
        self._show(stop)

    def keep(self, rows: Tensor, start: int, positions: Tensor | None, rope: Rope) -> None:
        """Keep the first `start` keys and those at `rows` [n] or [G,n], at new `positions`; see `KVCache.keep`."""
        if rows.ndim > 1 and self._held[2].shape[2] == 1:
            self._held[2] = self._held[2].repeat(1, 1, len(rows))
        for first in range(0, rows.shape[-1], _BLOCK):
            some = rows[..., first : first + _BLOCK]
            kept = [_take(part, some) for part in self._held]
            if positions is not None:
                new = _take(positions.transpose(1, 2), some)
                distance = (new - kept[2][:-1]).transpose(1, 2)
                kept[0] = rope.rerotate(kept[0].transpose(1, 2), distance).transpose(1, 2)
                kept[2][:-1] = new
            for held, part in zip(self._held, kept, strict=True):
                held[:, start + first : start + first + some.shape[-1]] = part
        self._show(start + rows.shape[-1])

    def move(self, distance: Tensor, rope: Rope) -> None:
        """Move all keys by `distance` [A,1,1]."""
        assert self.keys is not None and self.positions is not None
        self.keys.copy_(rope.rerotate(self.keys, distance))
        self.positions += distance

    def fit(self) -> None:
        """Free the room for more."""
        length = self.get_seq_length()
        if self._held and self._held[0].shape[1] > length:
            self._grow([part[:, :length] for part in self._held], length)
            self._show(length)

    def crop(self, tokens_to_remove: int) -> None:
        if self.keys is self._shown:
            self._show(self.get_seq_length() - abs(tokens_to_remove))
        else:
            super().crop(tokens_to_remove)

    def _grow(self, filled: list[Tensor], capacity: int) -> None:
        """Tensors with room for `capacity` tokens, one after the other, so that only one is there twice."""
        self.keys = self.values = self.positions = self.rows = self._shown = None
        self._held = filled
        for number, part in enumerate(filled):
            with torch.inference_mode(False):  # can be written to in any mode
                filled[number] = part.new_empty(part.shape[0], capacity, *part.shape[2:])
            filled[number][:, : part.shape[1]] = part

    def _show(self, length: int) -> None:
        keys, values, places = (part[:, :length].transpose(1, 2) for part in self._held)
        self.keys, self.values, self._shown = keys, values, keys
        self.positions, self.rows = places[:-1], places[-1]


class KVCache(Cache):
    """The cache of one prompt: `announce` sets the next positions, the model's layers add keys, `keep` evicts.

    `room`: how many tokens there will be in all, if that is known. `kinds`: of layers; those of linear attention hold a
    state and no keys, and are not among the `keyed`.
    """

    layers: list[_KVLayer]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, layers: int, rope: Rope, room: int = 0, kinds: Sequence[str] = ()) -> None:
        made = {number: LinearAttentionLayer() for number, kind in enumerate(kinds) if kind == "linear_attention"}
        self.keyed = [_KVLayer() for _ in range(layers - len(made))]
        rest = iter(self.keyed)
        super().__init__(layers=[made.get(number) or next(rest) for number in range(layers)])
        self.rope, self.room = rope, room
        self.new_keys: Tensor | None = None
        """The keys that were added last, as the model rotated them."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of keys in each layer."""
        return tuple(layer.get_seq_length() for layer in self.keyed)

    @property
    def held_bytes(self) -> int:
        """Bytes of storage of keys and values, room for more included, shared storage counted once."""
        tensors = [t for layer in self.keyed for t in (layer.keys, layer.values) if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def announce(self, positions: Tensor, continuous: bool = False, axes: int = 1, rows: Tensor | None = None) -> None:
        """Set the positions [A,1,n] of the next tokens, and their `rows` [n] of the prompt.

        `continuous`: in each layer they follow its last key directly; so the first `axes` axes are offset per layer.
        """
        rows = positions.new_full(positions.shape[-1:], -1) if rows is None else rows
        places = torch.cat([positions, rows.expand(1, 1, -1)]).transpose(1, 2)  # [A+1,n,1]
        if not continuous:
            for layer in self.keyed:
                layer.coming, layer.turn = places, None
            return
        offsets = places.new_zeros(len(self.keyed), len(places))
        offsets[:, :axes] = (positions[0, 0, 0] - 1 - self._last_times()).reshape(-1, 1)
        coming = places - offsets[:, :, None, None]
        cos, sin = self.rope.angles(-offsets[:, :-1].T[:, None])
        for number, layer in enumerate(self.keyed):
            layer.coming, layer.turn = coming[number], (cos[:, number, None], sin[:, number, None])

    def narrow(self, start: int, places: Tensor) -> None:
        """Only the announced tokens at `places` [n] come to the layers from `start` on."""
        for layer in self.layers[start:]:
            assert layer.coming is not None
            layer.coming = layer.coming.index_select(1, places.to(layer.coming.device))

    def _last_times(self) -> Tensor:
        """The largest time of each layer's last keys [L]; -1 where there are none."""
        shown = [layer.positions for layer in self.keyed if layer.positions is not None]
        if not shown:
            return torch.tensor(-1)
        return torch.stack([p[0, 0, -1] if p.shape[1] == 1 else p[0, :, -1].max() for p in shown])

    def close_gaps(self, time: int) -> None:
        """Move every layer's keys so that the next token, at `time`, follows the last one directly with offset 0."""
        for layer, last in zip(self.keyed, self._last_times().tolist(), strict=True):
            assert layer.positions is not None
            if time - 1 != last:
                distance = torch.zeros(len(layer.positions), 1, 1, dtype=torch.long)
                distance[0] = time - 1 - last
                layer.move(distance.to(layer.positions.device), self.rope)

    def apply_offset(self, layer: int, states: Tensor) -> Tensor:
        """Rotated queries or keys [B,H,n,E] of the announced tokens at the layer's own positions."""
        turn = self.layers[layer].turn
        return states if turn is None else self.rope.turn(states, *turn)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the announced tokens to a layer; returns all its keys and values."""
        layer = self.layers[layer_idx]
        assert layer.coming is not None and layer.coming.shape[1] == key_states.shape[2], "announce() was not called"
        self.new_keys = key_states
        layer.append(self.apply_offset(layer_idx, key_states), value_states, self.room)
        assert layer.keys is not None and layer.values is not None
        return layer.keys, layer.values

    def keep(self, layer_idx: int, rows: Tensor, positions: Tensor | None = None, start: int = 0) -> None:
        """Evict all keys of a layer but `rows` ([n], or [G,n] per key head, ascending), in place.

        `positions` [A,1 or G,K]: new ones. `start`: as many of the first keys are known to stay as they are.
        """
        layer = self.layers[layer_idx]
        assert layer.keys is not None
        if positions is not None or rows.ndim > 1 or len(rows) < layer.keys.shape[2]:
            layer.keep(rows.to(layer.keys.device, non_blocking=True)[..., start:], start, positions, self.rope)

    def fit(self) -> None:
        """Free the room for more, when nothing more is read: `held_bytes` are those of the keys then."""
        self.new_keys = None
        for layer in self.keyed:
            layer.fit()


def _take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Of a tensor [*,K,1 or G,...] what is at `rows` [n], or [G,n] per key head."""
    if rows.ndim == 1:
        return tensor.index_select(1, rows)
    index = rows.T.reshape(1, -1, len(rows), *[1] * (tensor.ndim - 3))
    tensor = tensor.expand(-1, -1, len(rows), *tensor.shape[3:])
    return tensor.gather(1, index.expand(len(tensor), -1, -1, *tensor.shape[3:]))
