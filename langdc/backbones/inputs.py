"""From prompts and videos' tokens to a model's inputs. Letters: B prompts, M length, D width, A rotary axes."""

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from langdc.attention import using
from langdc.backbones.chat import IGNORED
from langdc.backbones.splice import joined_sides
from langdc.chunks import tokens_per_chunk, videos_in_order
from langdc.interfaces import Backbone, KVCompressor, LayerCompressor
from langdc.kvcache import recurrent_layers
from langdc.prefill import PrefillOutput, prefill
from langdc.rope import position_limit
from langdc.steps import Reading
from langdc.types import Prompt, Spliced, TextInputs, VideoTokens


def text_inputs(
    backbone: Backbone,
    prompts: list[Prompt],
    tokens: list[list[VideoTokens]],
    left: bool = False,
    packed: bool = False,
    where: Sequence[str] = (),
    evicts: bool = False,
) -> TextInputs:
    """Splice prompts with their videos' tokens, number positions, pad to one length; on the `left` for generation.

    `packed`: in few rows, as long as the longest of them. ValueError for a prompt that is longer than the model's
    positions; `where` names each. Where a cache `evicts` videos, only the text counts.
    """
    spliced = backbone.splice(prompts, tokens)
    shared = packed or any(item.sequence_id is not None for item in spliced)
    if shared and recurrent_layers(backbone.text_model.config):
        raise ValueError(
            "The language model has layers of linear_attention, which carry what they read of one question to the "
            "next. Ask one question a sequence: train.questions_per_video: 1, train.packing: false."
        )
    side = "left" if left else "right"

    def padded(tensors: list[Tensor], value: float) -> Tensor:
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)

    places = [
        _restarted(backbone.positions(prompt, shown)[:, 0], item.sequence_id).T
        for prompt, shown, item in zip(prompts, tokens, spliced, strict=True)
    ]
    _check_lengths(backbone, prompts, [place[:0] for place in places] if evicts else places, where)
    if packed:
        rows = _rows([len(item.embeds) for item in spliced])
        spliced = [_joined([spliced[number] for number in row], row) for row in rows]
        places = [torch.cat([places[number] for number in row]) for row in rows]
    embeds = padded([item.embeds for item in spliced], 0.0)
    labels = [item.labels for item in spliced if item.labels is not None]
    positions = padded(places, 0).permute(2, 0, 1).to(embeds.device, non_blocking=True)
    extra = backbone.batch_arguments(spliced, embeds.shape[1], left)
    learned = padded(labels, IGNORED) if labels else None
    return TextInputs(embeds, _mask(spliced, embeds, left), positions, learned, extra, tuple(spliced))


def _check_lengths(backbone: Backbone, prompts: list[Prompt], places: list[Tensor], where: Sequence[str] = ()) -> None:
    limit = position_limit(backbone.language_model.config)
    for number, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        length = int(place.max()) + 1 if place.numel() else len(prompt.ids)
        if limit is not None and length > limit:
            at = f"{where[number]}: a" if where else "A"
            raise ValueError(
                f"{at} prompt of {len(prompt.ids):,} tokens of text takes {length:,} positions with what it shows, and "
                f"the language model has {limit:,}. Shorten the text, or show less."
            )


def _rows(lengths: list[int]) -> list[list[int]]:
    """Numbers of the prompts of each row: the longest first, each into the first row that has room."""
    rows: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        room = (row for row in rows if sum(lengths[n] for n in row) + lengths[number] <= max(lengths))
        if (row := next(room, None)) is not None:
            row.append(number)
        else:
            rows.append([number])
    return rows


def _joined(items: list[Spliced], numbers: list[int]) -> Spliced:
    """Prompts with these numbers as one row."""

    def filled(value: int) -> list[Tensor]:
        return [torch.full((len(item.embeds),), value) for item in items]

    def joined(parts: list[Tensor | None], others: list[Tensor]) -> Tensor:
        return torch.cat([other if part is None else part for part, other in zip(parts, others, strict=True)])

    sample_id = torch.cat([zero + number for zero, number in zip(filled(0), numbers, strict=True)])
    if len(items) == 1:
        return replace(items[0], sample_id=sample_id)
    padding, blank = [item.padding for item in items], [torch.zeros_like(item.video) for item in items]
    labels = joined([item.labels for item in items], filled(IGNORED))
    labels[sample_id.diff(prepend=torch.tensor([-1])) != 0] = IGNORED  # the sample before does not predict the next
    deep = any(item.extra for item in items)
    return Spliced(
        torch.cat([item.embeds for item in items]),
        labels,
        torch.cat([item.video_id for item in items]),
        joined([item.sequence_id for item in items], filled(0)),
        joined_sides([(item.extra, int(item.video.sum())) for item in items]) if deep else (),
        None if all(part is None for part in padding) else joined(padding, blank),
        sample_id,
    )


def _restarted(positions: Tensor, sequence_id: Tensor | None) -> Tensor:
    """Positions [A,M] with every packed question, which is text alone, starting at the first one's position."""
    if sequence_id is None:
        return positions
    first = positions[:, sequence_id == 1][:, :1]
    order = torch.arange(len(sequence_id), device=sequence_id.device)
    starts = torch.zeros(int(sequence_id.max()) + 1, dtype=torch.long, device=sequence_id.device)
    starts.scatter_reduce_(0, sequence_id, order, "amin", include_self=False)
    return torch.where(sequence_id == 0, positions, first + order - starts[sequence_id])


def _mask(items: list[Spliced], embeds: Tensor, left: bool) -> Tensor:
    """Padding mask [B,M]; with packed questions the bias of attention scores [B,1,M,M]: 0 or the lowest number."""
    packed, length = torch.full(embeds.shape[:2], -1), embeds.shape[1]
    sample = torch.zeros_like(packed)
    places = [slice(length - len(each.embeds), length) if left else slice(len(each.embeds)) for each in items]
    for row, place, item in zip(packed, places, items, strict=True):
        row[place] = 0 if item.sequence_id is None else item.sequence_id
    for row, place, item in zip(sample, places, items, strict=True):
        row[place] = 0 if item.sample_id is None else item.sample_id
    sample = sample.to(embeds.device, non_blocking=True)
    packed = packed.to(embeds.device, non_blocking=True)
    for row, place, item in zip(packed, places, items, strict=True):
        if item.padding is not None:
            row[place][item.padding] = -1
    if all(item.sequence_id is None for item in items):
        return (packed == 0).long()
    # positions see earlier ones of their sample: of their question and of the shared part (0); padding sees itself
    causal = torch.ones(length, length, dtype=torch.bool, device=packed.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=packed.device)
    own_or_shared = (packed[:, :, None] == packed[:, None, :]) | (packed == 0)[:, None, :]
    own_or_shared &= sample[:, :, None] == sample[:, None, :]
    seen = ((causal & own_or_shared & (packed >= 0)[:, None, :]) | itself)[:, None]
    # added to the scores, since stock "eager" attention would add a boolean mask as 0 and 1
    return torch.zeros_like(seen, dtype=embeds.dtype).masked_fill(~seen, torch.finfo(embeds.dtype).min)


def read_together(backbone: Backbone, prompts: list[Prompt], tokens: list[list[VideoTokens]]) -> Reading:
    """Read prompts as one padded batch; a video with which several begin is read only once."""
    begins = [_beginning(prompt, videos) for prompt, videos in zip(prompts, tokens, strict=True)]
    order = {begin: number for number, begin in enumerate(dict.fromkeys(begins))}
    cache = DynamicCache()
    # a sliding window would count the padding between beginnings and the rest
    if len(order) == len(prompts) or slides(backbone):
        batch = text_inputs(backbone, prompts, tokens, left=True)
        return _continued(backbone, batch.arguments, cache, batch.positions.amax((0, 2)))
    places = [backbone.positions(prompt, shown)[:, 0] for prompt, shown in zip(prompts, tokens, strict=True)]
    _check_lengths(backbone, prompts, places)
    chosen = [begins.index(begin) for begin in order]
    beginnings = [Prompt(prompts[n].ids[: _cut(prompts[n])], slots=prompts[n].slots) for n in chosen]
    heads = text_inputs(backbone, beginnings, [tokens[n] for n in chosen], left=True)
    _states(backbone, heads.arguments, cache)
    of = torch.tensor([order[begin] for begin in begins], device=heads.mask.device)
    cache.batch_select_indices(of)
    rest = [Prompt(prompt.ids[_cut(prompt) :]) for prompt in prompts]
    tails = text_inputs(backbone, rest, [[]] * len(prompts), left=True)
    for row, (whole, tail) in enumerate(zip(places, rest, strict=True)):
        tails.positions[:, row, -len(tail.ids) :] = whole[:, -len(tail.ids) :].to(tails.positions.device)
    arguments = {**tails.arguments, "attention_mask": torch.cat([heads.mask[of], tails.mask], 1)}
    return _continued(backbone, arguments, cache, torch.stack([whole.amax() for whole in places]).to(of.device))


def slides(backbone: Backbone) -> bool:
    """Whether some layers attend to a window of the last tokens only."""
    return getattr(backbone.text_model.config, "sliding_window", None) is not None


def _continued(backbone: Backbone, arguments: dict[str, Any], cache: DynamicCache, largest: Tensor) -> Reading:
    """Read on; the next tokens stand after the `largest` [B] position of each whole prompt."""
    logits = backbone.lm_head(_states(backbone, arguments, cache)[:, -1])
    axes = len(arguments["position_ids"]) if arguments["position_ids"].ndim > 2 else 1
    following = (largest + 1)[None, :, None].expand(axes, -1, -1)
    return Reading(cache, logits, following, arguments["attention_mask"].bool())


def _states(backbone: Backbone, arguments: dict[str, Any], cache: DynamicCache) -> Tensor:
    """The last states [B,M,D]."""
    # a kernel that is given no mask would take the gaps of one row's positions for packed sequences
    kernel = str(backbone.language_model.config._attn_implementation)
    alone = "flash" in kernel and len(arguments["attention_mask"]) == 1
    with using(backbone.text_model) if alone else nullcontext():  # pyright: ignore[reportArgumentType]
        return backbone.text_model(**arguments, past_key_values=cache, use_cache=True).last_hidden_state


def read_prompt(
    backbone: Backbone,
    prompt: Prompt,
    tokens: list[VideoTokens],
    compressor: KVCompressor | None,
    frames: Sequence[int],
    steps: Sequence[int] | None = None,
    layers: LayerCompressor | None = None,
) -> PrefillOutput:
    """Read a prompt in the chunks that the KV compressor asks for, or in one piece. `frames`: how many each video has,
    1 for an image, which is read like text; `steps`: in how many its tokens come, by default the backbone's rule.
    """
    inputs = text_inputs(backbone, [prompt], [tokens], evicts=compressor is not None)
    spliced = inputs.spliced[0]
    own, padding = backbone.arguments(spliced), spliced.padding
    if padding is not None and (compressor is not None or layers is not None):
        raise ValueError(
            "A prompt with padding, which LangDC has with soft_token='released', cannot be read with a KV or layer "
            "compressor; leave out one of them, or set soft_token to 'at' or 'predicting'."
        )
    steps = [-(-count // backbone.frames_per_step) for count in frames] if steps is None else steps
    images = [number for number, count in enumerate(frames) if count == 1]
    among = compressor is not None or layers is not None
    unread = torch.isin(spliced.video_id, spliced.video_id.new_tensor(images)) if among else spliced.video
    numbers = spliced.video_id.masked_fill(unread, -1)
    shown = videos_in_order(numbers.cpu()) if among else []
    released = compressor is not None and compressor.released
    in_order = layers is not None and "frames" in layers.needs
    anchor = torch.zeros_like(spliced.video)
    for video in shown:
        if (marks := tokens[video].anchor) is not None:
            anchor[numbers == video] = marks.to(anchor.device)
    return prefill(
        backbone.text_model,  # pyright: ignore[reportArgumentType]
        backbone.lm_head,
        inputs.embeds[0],
        inputs.positions,
        numbers,
        compressor,
        chunk_tokens=None
        if compressor is None
        else [_chunk_tokens(compressor.chunk_frames, frames[v], steps[v], tokens[v], released) for v in shown],
        # where all steps have as many; one more token may end the video
        frame_tokens=[tokens[v].frame for v in shown]
        if in_order
        else [len(tokens[v]) // steps[v] if len(tokens[v]) % steps[v] <= 1 else None for v in shown],
        anchor=anchor if anchor.any() else None,
        arguments=own if padding is None else lambda rows: {**(own(rows) if own else {}), "padding": padding},
        layers=layers,
        reply_axes=backbone.released_axes if released else "time",
    )


def _chunk_tokens(chunk_frames: int, frames: int, steps: int, tokens: VideoTokens, released: bool) -> int:
    """Video tokens per chunk. Released code counts steps as frames, and makes the last newline a chunk of its own."""
    if not released:
        return tokens_per_chunk(chunk_frames, frames, len(tokens))
    newline = int(tokens.source is None and len(tokens) % steps == 1)
    return tokens_per_chunk(chunk_frames, frames, len(tokens) - newline, steps)


def _cut(prompt: Prompt) -> int:
    """Where the text after the last slot begins."""
    return prompt.slots[-1].position


def _beginning(prompt: Prompt, videos: list[VideoTokens]) -> Hashable:
    """A key that is equal for prompts that begin with the same text and the same single video."""
    if len(videos) != 1 or _cut(prompt) == len(prompt.ids):
        return id(prompt)
    return id(videos[0]), tuple(prompt.ids[: _cut(prompt)].tolist())
