"""A stock model that reads all rows in every layer, but whose queries do not attend to some of them.

What a layer compressor makes of a model must be what this slow version does. Letters: n rows, L layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from langdc.interfaces import LayerCompressor, Rows


class Noted(LayerCompressor):
    """Another one, whose merged states are noted, by layer: which rows, and what they became."""

    def __init__(self, inner: LayerCompressor) -> None:
        self.inner, self.needs = inner, inner.needs
        self.merged: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, rows: Rows):
        return self.inner.begin(rows)

    def keep(self, layer: int, rows: Rows) -> Rows:
        kept = self.inner.keep(layer, rows)
        changed = (kept.states != rows.states[torch.searchsorted(rows.index, kept.index)]).any(1)
        self.merged[layer] = kept.index[changed], kept.states[changed]
        return kept


@contextmanager
def all_but(
    text_model: PreTrainedModel, kept: Sequence[Tensor], length: int, later: int, merged: Mapping = {}
) -> Iterator[None]:
    """Inside the block the model, given `length` rows of a prompt and `later` more, attends in each of L layers only to
    the rows `kept` [n] and to later ones; after a layer some states are those of `merged` rows.
    """
    n = length + later
    causal, itself = torch.ones(n, n, dtype=torch.bool).tril(), torch.eye(n, dtype=torch.bool)
    with ExitStack() as stack:
        for number, layer in enumerate(text_model.layers):
            seen = torch.arange(n) >= length
            seen[kept[number]] = True
            mask = (causal & seen | itself)[None, None]  # a row that no one sees attends to itself

            def masked(module, args, options, mask=mask, before=number - 1):
                states = args[0].clone()
                if before in merged:  # after what DeepStack adds
                    states[0, merged[before][0]] = merged[before][1]
                return (states, *args[1:]), options | {"attention_mask": mask}

            stack.callback(layer.register_forward_pre_hook(masked, with_kwargs=True).remove)
        yield
