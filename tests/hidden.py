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
        self.inner, self.needs, self.halfway = inner, inner.needs, inner.halfway  # pyright: ignore[reportAttributeAccessIssue]
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
    text_model: PreTrainedModel,
    kept: Sequence[Tensor],
    length: int,
    later: int,
    merged: Mapping = {},
    halfway: bool = False,
) -> Iterator[None]:
    """Inside the block the model, given `length` rows of a prompt and `later` more, attends in each of L layers only to
    the rows `kept` [n] and to later ones; after a layer, or `halfway` after its attention, some states are those of
    `merged` rows.
    """
    n = length + later
    given: dict[int, Tensor] = {}
    causal, itself = torch.ones(n, n, dtype=torch.bool).tril(), torch.eye(n, dtype=torch.bool)
    with ExitStack() as stack:
        for number, layer in enumerate(text_model.layers):
            seen = torch.arange(n) >= length
            seen[kept[number]] = True
            mask = (causal & seen | itself)[None, None]  # a row that no one sees attends to itself

            def masked(module, args, options, mask=mask, before=number - 1):
                states = args[0].clone()
                if before in merged and (before < 0 or not halfway):  # after what DeepStack adds
                    states[0, merged[before][0]] = merged[before][1]
                given[before + 1] = states
                return (states, *args[1:]), options | {"attention_mask": mask}

            def attended(module, args, out, number=number):
                if halfway and number in merged:  # the layer adds to it what it was given
                    rows, states = merged[number]
                    out[0][0, rows] = states - given[number][0, rows]

            stack.callback(layer.register_forward_pre_hook(masked, with_kwargs=True).remove)
            stack.callback(layer.self_attn.register_forward_hook(attended).remove)
        yield
