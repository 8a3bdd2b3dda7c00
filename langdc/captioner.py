"""The captioner: a light causal language model that describes a segment; its hidden states are the soft tokens.

Letters: S segments of a batch, M row length, n caption tokens, Z captioner width.
Source: LangDC (arXiv 2509.00969), section 4.1.
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from langdc.attention import causal_rows, queries_and_keys
from langdc.decode import greedy, predictions
from langdc.flops import uncounted
from langdc.language_models import VIDEO_MARK, end_ids, ids_of, load_language_model, load_tokenizer, templated
from langdc.log import get_logger
from langdc.sources import Source
from langdc.types import LanguageWork
from langdc.walk import KNOWN

logger = get_logger(__name__)

SoftToken = Literal["at", "predicting", "released"]
IGNORED = -100


@dataclass(frozen=True, eq=False)
class _CaptionOutput:
    """Captions of S segments: `ids` [n] and `states` [n,Z] each; `loss` summed over `targets` predictions (nats).

    With soft_token "released", `states` may also hold the state that chose the end [n+1,Z]; `padding` [*,Z]: states of
    the steps until the last segment ends. `hidden` [S,M,Z]: the prompts (and given captions) in the layer of the
    states; `starts`: where captions start in these rows; `shift`: how many positions before that the states start.
    """

    ids: list[Tensor]
    states: list[Tensor]
    loss: Tensor
    targets: int
    hidden: Tensor
    starts: list[int]
    shift: int
    padding: list[Tensor] | None = None


class Captioner(nn.Module):
    """Describe segments from their visual tokens, by given captions (training) or greedily (use).

    `prompt`: the request, laid out by the tokenizer's chat template around the visual tokens; or, if it holds
    "{video}", the literal text to use. `layer` indexes the hidden states, 0 being the embeddings: the paper's layer 15
    of 24 is index 16. `soft_token`: "at" takes the state at the position whose input is the caption token, "predicting"
    the one before, which chose it. n caption tokens give n states, the end token none; an empty caption gives none.
    "released" does as the authors' code: "at" for given captions, "predicting" for written ones, where an end token
    counts as said unless it is the one that also pads. `compiled`: as in `langdc.decode.greedy`.
    """

    def __init__(
        self,
        source: Source,
        prompt: str,
        layer: int,
        soft_token: SoftToken = "at",
        max_soft_tokens: int = 128,
        tokenizer: str | None = None,
        attention: str = "sdpa",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if soft_token not in get_args(SoftToken):
            raise ValueError(f"soft_token is {soft_token!r}; allowed are {', '.join(get_args(SoftToken))}.")
        if max_soft_tokens < 1:
            raise ValueError(f"max_soft_tokens is {max_soft_tokens}; it must be at least 1.")
        self.language_model = load_language_model(source, attention)
        self.tokenizer = load_tokenizer(source if tokenizer is None else tokenizer)
        depth = self.language_model.config.num_hidden_layers
        if not -depth - 1 <= layer <= depth:
            raise ValueError(f"layer is {layer}; a captioner of {depth} layers has hidden states 0 to {depth}.")
        kinds = set(getattr(self.language_model.config, "layer_types", None) or ())
        if kinds - {"full_attention"}:
            raise ValueError(f"A captioner's layers all attend to all tokens; those of {source} are {sorted(kinds)}.")
        self.layer, self.soft_token, self.max_soft_tokens = layer, soft_token, max_soft_tokens
        self.compiled = compiled
        self._warned = False
        self.end = end_ids(self.language_model, self.tokenizer)
        self.before, self.after = self._prompt_ids(prompt)

    @property
    def width(self) -> int:
        """Z."""
        return self.language_model.config.hidden_size

    @property
    def pad(self) -> int | None:
        """The id that fills up shorter captions in the authors' code, which takes it for no token of a caption."""
        settings = self.language_model.generation_config
        stated = settings.pad_token_id if settings is not None else None
        found: Any = self.tokenizer.pad_token_id if stated is None else stated
        return found

    def _prompt_ids(self, prompt: str) -> tuple[Tensor, Tensor]:
        if "{video}" in prompt:
            laid_out = prompt.replace("{video}", VIDEO_MARK)
        else:
            message = {"role": "user", "content": f"{VIDEO_MARK}\n{prompt}"}
            laid_out = templated(self.tokenizer, [message], reply_next=True)
        before, _, after = laid_out.partition(VIDEO_MARK)
        return ids_of(self.tokenizer, before, laid_out=True), ids_of(self.tokenizer, after, laid_out=True)

    def encode(self, caption: str) -> Tensor:
        """Ids of a caption, without end token, cut to `max_soft_tokens` (with a warning the first time): [n]."""
        ids = ids_of(self.tokenizer, caption)
        if len(ids) > self.max_soft_tokens and not self._warned:
            self._warned = True
            text = "A caption of %d tokens is cut to max_soft_tokens = %d, and so are all others that are longer: %r."
            logger.warning(text, len(ids), self.max_soft_tokens, caption[:80])
        return ids[: self.max_soft_tokens]

    def decode(self, ids: Tensor) -> str:
        """The text of caption ids."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    @uncounted()
    def supervised(self, visual: list[Tensor], captions: list[Tensor]) -> _CaptionOutput:
        """Read given captions (ids [n] per segment, on the CPU) after `visual` tokens [n_visual,Z]; score them and the
        end of each.
        """
        inputs, starts = self._inputs(visual, captions)
        with causal_rows(self.language_model.config, inputs["inputs_embeds"].shape[1]):
            found = self.language_model.model(**inputs, output_hidden_states=True, use_cache=False)
        # the position before the first caption token predicts it; the last caption token predicts the end
        lengths = [len(caption) + 1 for caption in captions]
        places = self._places([start - 1 for start in starts], lengths, inputs["attention_mask"])
        predicting = found.last_hidden_state.flatten(0, 1).index_select(0, places)
        end = torch.tensor([self.tokenizer.eos_token_id])
        targets = torch.cat([part for caption in captions for part in (caption, end)])
        targets = targets.to(predicting.device, non_blocking=True)
        loss = F.cross_entropy(self.language_model.lm_head(predicting).float(), targets, reduction="sum")
        return self._read(captions, found.hidden_states[self.layer], starts, loss, len(targets))

    @uncounted()
    def read(self, visual: list[Tensor], captions: list[Tensor]) -> _CaptionOutput:
        """As `supervised`, by the layers below the states alone and without a loss."""
        inputs, starts = self._inputs(visual, captions)
        with causal_rows(self.language_model.config, inputs["inputs_embeds"].shape[1]):
            hidden = self._reader()(**inputs, use_cache=False).last_hidden_state
        return self._read(captions, hidden, starts, hidden.new_zeros(()), 0)

    @uncounted()
    def layers(self, visual: list[Tensor], captions: list[Tensor]) -> list[list[Tensor]]:
        """The hidden states of given captions, by layer (the embeddings first) and segment [1+n,Z]: that which predicts
        the first caption token, then those at the caption tokens. The last layer's are those after the norm.
        """
        inputs, starts = self._inputs(visual, captions)
        with causal_rows(self.language_model.config, inputs["inputs_embeds"].shape[1]):
            found = self.language_model.model(**inputs, output_hidden_states=True, use_cache=False)
        lengths = [len(caption) + 1 for caption in captions]
        places = self._places([start - 1 for start in starts], lengths, inputs["attention_mask"])
        return [list(each.flatten(0, 1).index_select(0, places).split(lengths)) for each in found.hidden_states]

    @property
    def depth(self) -> int:
        """How many layers there are below the states."""
        layers = self.language_model.config.num_hidden_layers
        return self.layer if self.layer >= 0 else layers + 1 + self.layer

    def _reader(self) -> nn.Module:
        """The language model up to the states: the same layers, without those above and the norm after them."""
        whole = self.language_model.model
        if self.depth == self.language_model.config.num_hidden_layers:
            return whole
        reader = copy(whole)
        reader.config = self._reader_config
        reader._modules = {**whole._modules, "norm": nn.Identity()}
        return reader

    def work(self, visual: Tensor, caption: int, how: Literal["scored", "read", "written"]) -> LanguageWork:
        """What the language model does for one segment `visual` [n_visual,Z] with a caption of `caption` tokens."""
        config, start = self.language_model.config, len(self.before) + len(visual) + len(self.after)
        if how == "written":
            return LanguageWork(config, start, written=predictions(caption, self.max_soft_tokens))
        if how == "scored":
            return LanguageWork(config, start + caption, scored=caption + 1)
        return LanguageWork(self._reader_config, start + caption)

    @cached_property
    def _reader_config(self) -> Any:
        config = deepcopy(self.language_model.config)
        config.num_hidden_layers = self.depth
        return config

    def _inputs(self, visual: list[Tensor], captions: list[Tensor]) -> tuple[dict[str, Tensor], list[int]]:
        """What the model is given to read all segments at once, and where each caption starts."""
        rows, starts = self._rows(visual, captions)
        embeds, mask = _padded(rows, "right")
        positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        return {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}, starts

    def _read(
        self, captions: list[Tensor], hidden: Tensor, starts: list[int], loss: Tensor, targets: int
    ) -> _CaptionOutput:
        shift = 1 if self.soft_token == "predicting" else 0
        states = self._parts(hidden, [start - shift for start in starts], list(map(len, captions)))
        return _CaptionOutput(captions, states, loss, targets, hidden, starts, shift)

    def _parts(self, padded: Tensor, starts: list[int], lengths: list[int]) -> list[Tensor]:
        """`lengths` positions from `starts` in each row of a padded batch [S,M,Z]."""
        places = self._places(starts, lengths, padded)
        return list(padded.flatten(0, 1).index_select(0, places).split(lengths))

    @staticmethod
    def _places(starts: list[int], lengths: list[int], padded: Tensor) -> Tensor:
        """Flat indices into a padded batch [S,M,...] of `lengths` positions from `starts` in each row.
        One look-up for all rows: each slice would have a gradient as large as the batch.
        """
        longest = padded.shape[1]
        ranges = [torch.arange(n) + i * longest + a for i, (a, n) in enumerate(zip(starts, lengths, strict=True))]
        return torch.cat(ranges).to(padded.device, non_blocking=True)

    @uncounted()
    def write(self, visual: list[Tensor], synced: bool = False) -> _CaptionOutput:
        """Write the captions of all segments greedily, in one batch. `visual`: [n_visual,Z] per segment."""
        rows, _ = self._rows(visual, [torch.empty(0, dtype=torch.long)] * len(visual))
        embeds, mask = _padded(rows, "left")
        released = self.soft_token == "released"
        ends = [number for number in self.end if number != self.pad]
        options: dict[str, Any] = {"counted_ends": ends, "pad": self.pad} if released else {}
        options["compiled"] = self.compiled
        limits = (self.max_soft_tokens, self.layer, synced)
        output = greedy(self.language_model, embeds, mask, self.end, *limits, **options)
        shift = 0 if self.soft_token == "at" else 1
        states, read = output.predicting if shift else output.at, (output.prompt, [mask.shape[1]] * len(visual))
        return _CaptionOutput(
            output.ids, states, embeds.new_zeros(()), 0, *read, shift, output.after if released else None
        )

    def check_looks(self, heads: Sequence[int] | None) -> None:
        """ValueError for heads that do not exist, and for a captioner whose attention `looks` cannot compute."""
        config = self.language_model.config
        if self.depth == (layers := config.num_hidden_layers):
            raise ValueError(f"No layer reads the states of layer {layers}, the last; grounded needs a lower `layer`.")
        if config.model_type not in KNOWN:
            raise ValueError(f"The captioner is a {config.model_type!r}; grounded needs one of {', '.join(KNOWN)}.")
        if heads is not None and not (heads and set(heads) <= set(range(config.num_attention_heads))):
            last = config.num_attention_heads - 1
            raise ValueError(f"grounded is {heads}; give true, or one or more of the heads 0 to {last}.")

    def looks(self, visual: list[Tensor], output: _CaptionOutput, heads: Sequence[int] | None) -> list[Tensor]:
        """Attention weights of each state to its segment's visual tokens [n_visual,Z]: [n,n_visual] in float32.

        In the layer that reads the states, over the visual tokens alone, so that rows sum to 1; a mean over `heads`
        (None: all).
        """
        counts = list(map(len, visual))
        firsts = [start - len(self.after) - n for start, n in zip(output.starts, counts, strict=True)]
        seen = self._parts(output.hidden, firsts, counts)
        rows, positions = [], []
        for tokens, states in zip(seen, output.states, strict=True):
            ask = len(self.before) + len(tokens) + len(self.after) - output.shift
            rows += tokens, states
            positions += torch.arange(len(tokens)) + len(self.before), torch.arange(len(states)) + ask
        whole, text = torch.cat(rows)[None], self.language_model.model
        turned = text.rotary_emb(whole, torch.cat(positions)[None].to(whole.device, non_blocking=True))
        found = queries_and_keys(text.layers[self.depth], whole, turned)
        queries, keys = (part[0].split(list(map(len, rows)), 1) for part in found)
        return [_shares(query, key, heads) for query, key in zip(queries[1::2], keys[::2], strict=True)]

    def _rows(self, visual: list[Tensor], captions: list[Tensor]) -> tuple[list[Tensor], list[int]]:
        """Prompt, visual tokens and caption of each segment in embedding space, and where its caption starts."""
        texts = [self.before, self.after, *captions]
        ids = torch.cat(texts).to(visual[0].device, non_blocking=True)
        words = self.language_model.get_input_embeddings()(ids).split(list(map(len, texts)))
        rows = [
            torch.cat([words[0], seen.to(words[0].dtype), words[1], caption])
            for seen, caption in zip(visual, words[2:], strict=True)
        ]
        return rows, [len(self.before) + len(seen) + len(self.after) for seen in visual]


def _shares(query: Tensor, key: Tensor, heads: Sequence[int] | None) -> Tensor:
    """Attention weights of scaled queries [h,n,E] to keys [G,K,E], the mean over `heads`: [n,K] in float32."""
    scores = query.reshape(len(key), -1, query.shape[2]) @ key.mT
    weights = scores.float().softmax(-1).view(*query.shape[:2], key.shape[1])
    return (weights if heads is None else torch.stack([weights[head] for head in heads])).mean(0)


def _padded(rows: list[Tensor], side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Rows [n,Z] padded to one length on a side [S,M,Z], and their mask [S,M]."""
    mask = [row.new_ones(len(row), dtype=torch.long) for row in rows]
    embeds, masks = (pad_sequence(part, batch_first=True, padding_side=side) for part in (rows, mask))
    return embeds, masks
