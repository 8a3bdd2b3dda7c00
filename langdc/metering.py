"""What things cost: floating-point operations by closed form, and memory.

A multiply-add counts two operations. Attention counts every query against every key, the masked half included, as
kernels without block skipping and `torch.utils.flop_counter` do. Norms, activations, softmax, rotations and embedding
look-ups are not counted.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from langdc.devices import synchronize as synchronize  # measuring seconds needs it


def matmul_flops(rows: float, inner: float, columns: float) -> float:
    """A product of [rows,inner] and [inner,columns]."""
    return 2.0 * rows * inner * columns


def transformer_flops(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_width: int,
    mlp_width: int,
    new_tokens: int,
    past_tokens: float = 0,
    gated: bool = True,
) -> float:
    """The blocks of a decoder that reads `new_tokens` after `past_tokens` cached ones; the head is `lm_head_flops`.

    `gated`: the MLP has three matrices (Qwen2, Llama), not two.
    """
    queries, keys = heads * head_width, kv_heads * head_width
    projections = matmul_flops(new_tokens, width, 2 * queries + 2 * keys)  # query and output; key and value
    attention = 2 * matmul_flops(new_tokens, queries, new_tokens + past_tokens)
    mlp = matmul_flops(new_tokens, width, mlp_width) * (3 if gated else 2)
    return layers * (projections + attention + mlp)


def lm_head_flops(width: int, vocabulary: int, predictions: int) -> float:
    """Logits of `predictions` positions."""
    return matmul_flops(predictions, width, vocabulary)


def vit_flops(
    layers: int,
    width: int,
    mlp_width: int,
    patches: int,
    patch_values: int,
    extra_tokens: int = 1,
    clips: int = 1,
) -> float:
    """A vision transformer on `clips` clips (or images) of `patches` patches, each of `patch_values` numbers.

    Pixels of a patch times channels (times frames of a tubelet) are its numbers; `extra_tokens`: class tokens. Layers
    that are run count, also where an earlier hidden state is read.
    """
    embedding = matmul_flops(patches, patch_values, width)
    blocks = transformer_flops(layers, width, 1, 1, width, mlp_width, patches + extra_tokens, gated=False)
    return clips * (embedding + blocks)


def patch_flops(width: int, patch: int, patches: int) -> float:
    """Embedding the patches of one RGB frame."""
    return 2.0 * 3 * patch * patch * width * patches


class _Watch(TorchDispatchMode):
    """Adds up the storages that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                self._note(leaf.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.alive:
            return
        self.alive[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, number: int) -> None:
        self.now -= self.alive.pop(number, 0)


def most_live_bytes(work: Callable[[], object]) -> int:
    """The highest sum of tensor storage that `work` made and held at one time, on the CPU."""
    with _Watch() as watch:
        work()
    return watch.most
