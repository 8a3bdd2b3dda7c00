"""Prompts and video tokens to replies, with what the language model cost: seconds, FLOPs, bytes of the cache."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from langdc import devices
from langdc.backbones.inputs import read_prompt, read_together
from langdc.flops import reading_flops
from langdc.generate import Continuation, FirstToken, ScoreCheck
from langdc.interfaces import Backbone, KVCompressor
from langdc.timing import StageTimer, note, stage
from langdc.types import Answer, Prompt, VideoTokens


@torch.no_grad()
def reply_alone(
    backbone: Backbone,
    prompt: Prompt,
    tokens: list[VideoTokens],
    frames: Sequence[int],
    kv: KVCompressor | None,
    options: dict[str, Any],
) -> Answer:
    """Read one prompt and write the reply. `frames`: how many were read of each video; `options`: of `generate`."""
    watch, options = _watched(backbone, options)
    with StageTimer(backbone.language_model.device) as timer:
        with stage("prefill"):
            reading = read_prompt(backbone, prompt, tokens, kv, frames)
        held, kv_bytes = reading.keys_per_layer, reading.cache.held_bytes
        with stage("generate"):
            ids = Continuation(reading, backbone.generation_config).generate(**options)
            text = _text(backbone, ids[0])
    watch.require_finite(tokens)
    flops = reading_flops(backbone, reading.calls, sum(held) / len(held), len(ids[0]) - 1, reading.scoring_flops)
    answer = Answer(text, seconds=timer.seconds, flops=flops, kv_bytes=kv_bytes, reply_tokens=len(ids[0]))
    return _measured(backbone, prompt, replace(answer, keys_per_layer=held if kv is not None else None))


@torch.no_grad()
def reply_together(
    backbone: Backbone,
    prompts: list[Prompt],
    tokens: list[list[VideoTokens]],
    clock: FirstToken | None,
    options: dict[str, Any],
) -> list[Answer]:
    """Answer prompts as one padded batch; seconds are each one's share. `clock`: of a single prompt's first token."""
    watch, options = _watched(backbone, options)
    if clock is not None:
        options = {"streamer": clock, **options}
    started = time.perf_counter()
    ids, lengths = _generate(backbone, prompts, tokens, options)
    devices.synchronize(ids.device)
    texts = [_text(backbone, row) for row in ids]
    finished = time.perf_counter()
    watch.require_finite(each for values in tokens for each in values)
    first = clock.at if clock is not None and clock.at is not None else finished
    spent = {"prefill": first - started, "generate": finished - first}
    for name, taken in spent.items():
        note(name, taken)
    seconds = {name: taken / len(prompts) for name, taken in spent.items()}
    ended = torch.isin(ids, torch.tensor(backbone.end_ids, device=ids.device))
    # replies that end early are filled up
    written = torch.where(ended.any(1), ended.int().argmax(1) + 1, ids.shape[1]).tolist()
    answers = []
    for text, prompt, length, new in zip(texts, prompts, lengths, written, strict=True):
        flops, kv_bytes = reading_flops(backbone, [(length, 0)], length, new - 1), length * backbone.key_bytes
        answer = Answer(text, seconds=dict(seconds), flops=flops, kv_bytes=kv_bytes, reply_tokens=new)
        answers.append(_measured(backbone, prompt, answer))
    return answers


def _generate(
    backbone: Backbone, prompts: list[Prompt], tokens: list[list[VideoTokens]], options: dict[str, Any]
) -> tuple[Tensor, list[int]]:
    """Ids of the replies, and lengths of the prompts; the cache is freed on return, before the clock stops."""
    generate: Any = backbone.language_model.generate
    batch = read_together(backbone, prompts, tokens)
    return generate(**batch, **options), batch["attention_mask"].sum(1).tolist()


def _watched(backbone: Backbone, options: dict[str, Any]) -> tuple[ScoreCheck, dict[str, Any]]:
    """Options with the backbone's end and padding ids and a processor that finds scores that are no numbers."""
    watch, tokenizer = ScoreCheck(), backbone.tokenizer
    complete = {
        "eos_token_id": backbone.end_ids,
        "pad_token_id": tokenizer.pad_token_id,
        **({"tokenizer": tokenizer} if "stop_strings" in options else {}),
        **options,
        "logits_processor": watch.after(options.get("logits_processor")),
    }
    return watch, complete


def _text(backbone: Backbone, ids: Tensor) -> str:
    return str(backbone.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _measured(backbone: Backbone, prompt: Prompt, answer: Answer) -> Answer:
    """An answer with the most memory that was used, and the bytes of its text's keys."""
    peak, text_bytes = devices.peak_bytes(backbone.language_model.device), len(prompt.ids) * backbone.key_bytes
    return replace(answer, peak_bytes=peak, kv_text_bytes=text_bytes)
