"""Prompts and video tokens to replies, with what the language model cost: seconds, FLOPs, bytes of the cache."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from langdc import devices
from langdc.backbones.inputs import read_prompt, read_together, slides
from langdc.decode import write
from langdc.flops import reading_flops
from langdc.generate import Continuation, ScoreCheck
from langdc.interfaces import Backbone, KVCompressor, LayerCompressor
from langdc.kvcache import recurrent_layers, token_bytes
from langdc.prefill import PrefillOutput
from langdc.steps import Reading
from langdc.timing import StageTimer, stage
from langdc.types import Answer, Prompt, VideoTokens

_OF_GREEDY = {
    *("max_new_tokens", "repetition_penalty", "eos_token_id", "pad_token_id", "bos_token_id"),
    *("do_sample", "temperature", "top_k", "top_p", "num_beams", "use_cache", "transformers_version"),
}
"""Settings of generation that `langdc.decode.write` follows, or that say nothing where nothing is drawn."""
_ZERO_COUNTS = {"max_time", "guidance_scale"}
"""Settings in which 0 does not stand for none."""
_MOST_TOKENS = 8192
"""The longest reply for which room is made before it is written; longer ones grow as transformers' `generate` does."""


@torch.no_grad()
def reply(
    backbone: Backbone,
    prompts: list[Prompt],
    tokens: list[list[VideoTokens]],
    frames: Sequence[Sequence[int]],
    kv: KVCompressor | None,
    options: dict[str, Any],
    layers: LayerCompressor | None = None,
) -> list[Answer]:
    """Read prompts and write the replies, with each one's share of the seconds. `frames`: how many were read of each
    video; `options`: of transformers' `generate`, which writes one by one where they ask for more than greedy replies.
    """
    if not prompts:
        return []
    if (options.get("num_return_sequences") or 1) != 1:
        raise ValueError(
            "num_return_sequences is not 1, and an answer is one reply. Leave it out, and ask several times."
        )
    ends = _as_list(options.get("eos_token_id", backbone.end_ids))
    options = {"pad_token_id": backbone.tokenizer.pad_token_id, **options, "eos_token_id": ends}
    greedy = None if recurrent_layers(backbone.text_model.config) else _greedy(backbone, options)
    if greedy is None and len(prompts) > 1:
        each = zip(prompts, tokens, frames, strict=True)
        return [reply(backbone, [one], [shown], [counts], kv, options, layers)[0] for one, shown, counts in each]
    with StageTimer(backbone.language_model.device) as timer:
        with stage("prefill"):
            read = _read(backbone, prompts, tokens, frames, kv, layers, greedy is not None)
            held = [(each.keys_per_layer, each.cache.held_bytes) for each in read if isinstance(each, PrefillOutput)]
        with stage("generate"):
            ids, finite = _written(backbone, read, greedy, options)
            texts = [str(backbone.tokenizer.decode(row, skip_special_tokens=True)).strip() for row in ids]
    _require_finite_scores(finite, (each for shown in tokens for each in shown))
    seconds = {name: taken / len(prompts) for name, taken in timer.seconds.items()}
    per_token = token_bytes(backbone.text_model.config, backbone.language_model.dtype)
    answers = []
    for number, (prompt, shown, text, row) in enumerate(zip(prompts, tokens, texts, ids, strict=True)):
        unread, choosing = 0, 0.0
        if held:
            (keys, kv_bytes), output = held[number], read[number]
            assert isinstance(output, PrefillOutput)
            calls, scoring = output.calls, output.scoring_flops
            if output.steps is not None:
                unread, choosing = output.steps.unread, output.steps.flops
        else:
            length = len(prompt.ids) + sum(map(len, shown))
            depth = backbone.language_model.config.get_text_config().num_hidden_layers
            calls, scoring = [(length, 0, depth, length)], 0.0
            keys, kv_bytes = [length], length * per_token
        answer = Answer(
            text,
            seconds=dict(seconds),
            flops=reading_flops(backbone, calls, sum(keys) / len(keys), len(row) - 1, scoring, unread, choosing),
            kv_bytes=kv_bytes,
            kv_text_bytes=len(prompt.ids) * per_token,
            reply_tokens=len(row),
            keys_per_layer=keys if kv is not None or layers is not None else None,
            peak_bytes=devices.peak_bytes(backbone.language_model.device),
        )
        answers.append(answer)
    return answers


def _greedy(backbone: Backbone, options: dict[str, Any]) -> GenerationConfig | None:
    """The settings of a greedy reply; None where they ask for more, which only transformers' `generate` does."""
    config = deepcopy(backbone.generation_config)
    others = config.update(**options)
    stated = config.to_diff_dict().items()
    more = {name for name, value in stated if (value or name in _ZERO_COUNTS) and name[0] != "_"} - _OF_GREEDY
    drawn = config.do_sample or config.num_beams not in (None, 1) or config.use_cache is False
    penalty = config.repetition_penalty
    refused = penalty is not None and penalty <= 0  # `generate` says why
    if others or more or drawn or refused or not config.max_new_tokens or config.max_new_tokens > _MOST_TOKENS:
        return None
    return config


def _read(
    backbone: Backbone,
    prompts: list[Prompt],
    tokens: list[list[VideoTokens]],
    frames: Sequence[Sequence[int]],
    kv: KVCompressor | None,
    layers: LayerCompressor | None,
    greedy: bool,
) -> list[PrefillOutput] | list[Reading]:
    """Prompts read one by one, if they are to be evicted from, padded inside or a single one; else as one batch."""
    padded = any(each.padding is not None for shown in tokens for each in shown)
    if kv is None and layers is None and greedy and not padded and (len(prompts) > 1 or slides(backbone)):
        return [read_together(backbone, prompts, tokens)]
    given = zip(prompts, tokens, frames, strict=True)
    return [read_prompt(backbone, prompt, shown, kv, counts, layers=layers) for prompt, shown, counts in given]


def _written(
    backbone: Backbone,
    read: list[PrefillOutput] | list[Reading],
    greedy: GenerationConfig | None,
    options: dict[str, Any],
) -> tuple[list[list[int]], bool]:
    """The ids of the replies, their ends included, and whether all scores were finite."""
    alone = [each for each in read if isinstance(each, PrefillOutput)]
    # each layer's tokens stand elsewhere, or attend to other keys
    if greedy is None or any(each.offset_axes or each.steps is not None for each in alone):
        return _generated(backbone, alone, options)
    readings = [Reading(e.cache, e.logits, e.next_position) if isinstance(e, PrefillOutput) else e for e in read]
    ends = options["eos_token_id"]
    penalty = float(greedy.repetition_penalty or 1.0)
    found = write(backbone.text_model, backbone.lm_head, readings, ends, int(greedy.max_new_tokens), penalty=penalty)
    ids = found.ids[:, : found.done].tolist()
    stops = [next((number for number, each in enumerate(row, 1) if each in ends), len(row)) for row in ids]
    return [row[:stop] for row, stop in zip(ids, stops, strict=True)], bool(found.total.isfinite())


def _generated(backbone: Backbone, read: list[PrefillOutput], options: dict[str, Any]) -> tuple[list[list[int]], bool]:
    watch = ScoreCheck()
    processors = LogitsProcessorList([*(options.get("logits_processor") or ()), watch])
    more = {"tokenizer": backbone.tokenizer} if "stop_strings" in options else {}
    options = {**more, **options, "logits_processor": processors}
    written = [Continuation(each, backbone.generation_config).generate(**options) for each in read]
    ids: list[Tensor] = [getattr(found, "sequences", found)[0] for found in written]  # of return_dict_in_generate
    return [row.tolist() for row in ids], watch.finite


def _as_list(ids: int | Sequence[int] | Tensor | None) -> list[int]:
    return [] if ids is None else torch.as_tensor(ids, dtype=torch.long).flatten().tolist()


def _require_finite_scores(finite: bool, tokens: Iterable[VideoTokens]) -> None:
    """ValueError if some scores were not finite; it says whether the videos' `tokens` were broken already."""
    if finite:
        return
    if all(per_video.values.isfinite().all() for per_video in tokens):
        where = "the video tokens are finite, so it is the language model. Load it in float32 or bfloat16"
    else:
        where = "the video tokens hold NaN or infinity already. Look at the compressor and the projectors"
    raise ValueError(
        f"The scores of the next token are NaN or infinite: {where}, and see whether a weight is not finite."
    )
