"""One call of a language model, layer by layer, with a layer compressor that drops rows on the way.

The layers are those of the stock model, which is called as it is everywhere else; where rows leave halfway through a
layer, its parts are called one by one.
Letters: A rotary axes, D width, h query heads, G key heads, E head width, K keys cached, n rows, q rows that ask.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from langdc.attention import Observer
from langdc.devices import at_once
from langdc.flops import Counted
from langdc.interfaces import LayerCompressor, Rows
from langdc.kvcache import KVCache

KNOWN = ("llama", "mistral", "phi3", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3", "qwen3_vl_text")
"""Text models that do nothing between embeddings, layers and the last norm, but for DeepStack, and whose layers add
attention, then what a feed-forward part makes of that, to what they get.
"""

NEEDS = frozenset({"last", "question", "next", "keys", "normed", "frames"})


def check_walk(text_model: PreTrainedModel, compressor: LayerCompressor) -> None:
    """ValueError for a language model between whose layers a compressor cannot work."""
    kind, name = text_model.config.model_type, type(compressor).__name__
    if kind not in KNOWN:
        raise ValueError(
            f"The language model is a {kind!r}; {name} works between the layers of {', '.join(KNOWN)}. Take a "
            "compressor before the language model or of its cache."
        )
    if unknown := compressor.needs - NEEDS:
        raise ValueError(f"{name} needs {sorted(unknown)}; there is {', '.join(sorted(NEEDS))}.")
    compressor.check(text_model.config.num_hidden_layers)


class Walk:
    """Reads rows of a prompt. `work`: per run of layers the rows read, the keys cached before on average, how many
    layers, and of how many rows came to their feed-forward parts; `scoring_flops`: what the compressor took.
    """

    def __init__(
        self,
        text_model: PreTrainedModel,
        compressor: LayerCompressor,
        cache: KVCache,
        observer: Observer,
        arguments: Callable[[Tensor], Mapping[str, Any]] | None,
    ) -> None:
        self.model: Any = text_model
        self.compressor, self.cache, self.observer, self.arguments = compressor, cache, observer, arguments
        self.work: list[tuple[int, float, int, int]] = []
        self.came: list[Tensor | None] = []
        """Per layer so far, which of the rows came to it [n]; None: all."""
        self.scoring_flops = 0.0
        self._rows: Rows | None = None  # of the layer at work, where something of it is needed
        self._came: Tensor | None = None  # which of the rows go on [n]; None: all
        self._turned: Any = None  # their rotation

    def read(self, rows: Rows, positions: Tensor) -> Tensor:
        """Read `rows` at `positions` [A,1,n]; returns the state [D] of the last row."""
        after = self.compressor.begin(rows)
        if not set(after) <= set(range(-1, rows.layers)):
            raise ValueError(
                f"{type(self.compressor).__name__} drops rows after layers {sorted(after)}; there are 0 to "
                f"{rows.layers - 1}, and -1 before the first."
            )
        self._turned = self.model.rotary_emb(rows.states[None], positions if len(positions) > 1 else positions[0])
        if -1 in after:
            self._rows = rows
            rows = self._going_on(-1, rows.states)
        extra = self._extra(rows.index)
        for number, layer in enumerate(self.model.layers):
            read, past = len(rows.index), self.cache.layers[number].get_seq_length()
            self.came.append(self._came)
            drops = number in after and number < rows.layers - 1  # nothing follows the last
            self._rows = rows if drops else None
            if drops and self.compressor.halfway:
                attended = self._through(layer.self_attn, layer.input_layernorm(rows.states[None]))[0]
                rows = self._going_on(number, rows.states + attended[0])
                extra = self._extra(rows.index)
                states = rows.states + layer.mlp(layer.post_attention_layernorm(rows.states[None]))[0]
            else:
                states = self._through(layer, rows.states[None])[0]
            self._note_work(read, past, len(states))
            if number < len(extra.get("deepstack_visual_embeds", ())):
                states[extra["visual_pos_masks"][0]] += extra["deepstack_visual_embeds"][number].to(states)
            rows = replace(rows, states=states)
            if drops and not self.compressor.halfway:
                rows = self._going_on(number, states)
                extra = self._extra(rows.index)
        return self.model.norm(rows.states[-1])

    def _through(self, part: Any, states: Tensor) -> Any:
        """What a layer or its attention makes of states [1,n,D]."""
        options = {"past_key_values": self.cache, "use_cache": True, "observer": self}
        return part(states, attention_mask=None, position_embeddings=self._turned, **options)

    def _going_on(self, number: int, states: Tensor) -> Rows:
        """The rows that go on of those that layer `number` (-1: none yet) got and made `states` [n,D] of."""
        assert self._rows is not None
        needs = self.compressor.needs
        with Counted() as counted:
            rows = replace(self._rows, states=states, normed=self.model.norm(states) if "normed" in needs else None)
            if "next" in needs:
                rows = replace(rows, attention=self._of_next(number + 1, rows))
            kept = self.compressor.keep(number, rows)
        self.scoring_flops += counted.total
        places = self._checked(rows, kept, number)
        self._came = places if self._came is None else self._came[places]
        self._turned = tuple(part[:, places] for part in self._turned)
        self.cache.narrow(number + 1, places)
        return replace(rows.take(places), states=kept.states)

    def before_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the observer behind this one returns; notes what the compressor needs of a layer."""
        query, key, value = self.observer.before_attention(layer, query, key, value)
        if self._rows is not None:
            if "keys" in self.compressor.needs:
                self._rows = replace(self._rows, keys=key[0, :, -query.shape[2] :])
            if "next" not in self.compressor.needs and self.compressor.needs & {"last", "question"}:
                with Counted() as counted:
                    self._rows = replace(self._rows, attention=self._paid(query, key, self._rows))
                self.scoring_flops += counted.total
        return query, key, value

    def _paid(self, query: Tensor, key: Tensor, rows: Rows) -> Tensor:
        places = torch.arange(len(rows.index), device=rows.index.device)
        return paid_attention(query, key, rows.question if "question" in self.compressor.needs else places[-1:])

    def _of_next(self, number: int, rows: Rows) -> Tensor:
        """The attention that these rows would pay in the next layer; its attention is left before it computes more."""
        layer, probe = self.model.layers[number], _Probe()
        with suppress(_Seen):
            states = layer.input_layernorm(rows.states[None])
            layer.self_attn(states, position_embeddings=self._turned, attention_mask=None, observer=probe)
        past, key = self.cache.layers[number].keys, probe.key
        return self._paid(probe.query, key if past is None else torch.cat([past, key], 2), rows)

    def _extra(self, index: Tensor) -> Mapping[str, Any]:
        return self.arguments(index) if self.arguments else {}

    def _note_work(self, read: int, cached: int, fed: int) -> None:
        layers = 1
        if self.work and self.work[-1] == (read, cached, self.work[-1][2], fed):
            layers += self.work.pop()[2]
        self.work.append((read, cached, layers, fed))

    def _checked(self, rows: Rows, kept: Rows, layer: int) -> Tensor:
        """The places of the rows kept; ValueError if they are not what a layer compressor may keep."""
        places = torch.searchsorted(rows.index, kept.index).clamp(max=len(rows.index) - 1)
        text = rows.video_id < 0
        fine = (rows.index[places] == kept.index).all() & (text[places].sum() == text.sum())
        fine &= (kept.index.diff() > 0).all()
        if len(kept.states) != len(kept.index) or not fine:
            raise ValueError(
                f"{type(self.compressor).__name__} kept {len(kept.index)} of {len(rows.index)} rows after layer "
                f"{layer}: they must be some of them, in their order, with all text and the last."
            )
        return places


class _Seen(Exception):
    """Leaves an attention layer once its queries and keys are known."""


class _Probe:
    query: Tensor
    key: Tensor

    def before_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Note rotated queries and keys, and leave."""
        self.query, self.key = query, key
        raise _Seen


def paid_attention(query: Tensor, key: Tensor, asking: Tensor) -> Tensor:
    """Attention [q,n] that the rows `asking` [q] of queries [1,h,n,E], the last n of keys [1,G,K,E], paid to these n,
    causal, averaged over heads, in float32. Some heads are computed at a time.
    """
    count, keys = query.shape[2], key.shape[2]
    groups = key.shape[1]
    asked = query[0][:, asking].unflatten(0, (groups, -1))  # [G,h/G,q,E]
    hidden = torch.arange(keys, device=key.device) > (asking + keys - count)[:, None]
    total = torch.zeros(len(asking), count, device=key.device)
    step = at_once(4 * keys * asked.shape[1:3].numel(), key.device)
    for some in torch.arange(groups).split(step):
        part = slice(int(some[0]), int(some[-1]) + 1)
        scores = torch.einsum("gjqe,gke->gjqk", asked[part], key[0, part]).float() * query.shape[-1] ** -0.5
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        total += weights[..., keys - count :].sum((0, 1))
    return total / query.shape[1]
