"""Putting videos' tokens into a prompt, piece by piece. Letters: D backbone width, N tokens, M prompt+video length."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from langdc.backbones.chat import IGNORED
from langdc.types import Prompt, Spliced, VideoTokens


def splice_all(embed: nn.Module, prompts: list[Prompt], tokens: list[list[VideoTokens]]) -> list[Spliced]:
    """Embed prompts in one call of `embed` and put each one's videos into its slots; ValueError where they differ."""
    device = next(embed.parameters()).device
    lengths = [len(prompt.ids) for prompt in prompts]
    words = embed(torch.cat([prompt.ids for prompt in prompts]).to(device, non_blocking=True)).split(lengths)
    return [_splice(p, w, t) for p, w, t in zip(prompts, words, tokens, strict=True)]


def slot_tokens(prompt: Prompt, videos: list[VideoTokens]) -> Iterator[VideoTokens]:
    """The tokens of each slot of a prompt, in order; ValueError if videos are missing or some tokens have no slot."""
    named = {slot.video for slot in prompt.slots}
    if named != set(range(len(videos))):
        raise ValueError(f"The prompt has places for {len(named)} videos, {len(videos)} were given.")
    placed = [0] * len(videos)
    for slot in prompt.slots:
        tokens = videos[slot.video]
        if slot.segment is not None:
            tokens = tokens.take((tokens.segment == slot.segment).nonzero()[:, 0])
        placed[slot.video] += len(tokens)
        yield tokens
    for number, (count, video) in enumerate(zip(placed, videos, strict=True)):
        if count != len(video):
            raise ValueError(f"Video {number} has {len(video)} tokens, but the prompt has places for {count} of them.")


def _splice(prompt: Prompt, words: Tensor, videos: list[VideoTokens]) -> Spliced:
    cuts = [0, *(slot.position for slot in prompt.slots), len(prompt.ids)]
    pieces = [slice(start, stop) for start, stop in pairwise(cuts)]
    parts = list(slot_tokens(prompt, videos))
    video_ids = [slot.video for slot in prompt.slots]

    def woven(text: Tensor, shown: list[Tensor]) -> Tensor:
        """Text [M',*] with one tensor per slot between its pieces."""
        between = [text[pieces[0]]]
        for piece, one in zip(pieces[1:], shown, strict=True):
            between += [one.to(text.device, text.dtype), text[piece]]
        return torch.cat(between)

    def filled(value: int) -> list[Tensor]:
        return [torch.full((len(part),), value) for part in parts]

    def marked(ids: Tensor | None, value: int) -> Tensor | None:
        return None if ids is None else woven(ids, filled(value))

    text, padding = torch.full((len(words),), -1), None
    numbers = [torch.full((len(part),), video_id) for part, video_id in zip(parts, video_ids, strict=True)]
    if any(part.padding is not None for part in parts):
        none = [torch.zeros(len(part), dtype=torch.bool) for part in parts]
        marks = [empty if part.padding is None else part.padding for part, empty in zip(parts, none, strict=True)]
        padding = woven((text >= 0).to(words.device), marks)
    labels, sequence_id = marked(prompt.labels, IGNORED), marked(prompt.sequence_id, 0)
    video_id = woven(text, numbers).to(words.device, non_blocking=True)
    embeds, sides = [part.values for part in parts], joined_sides([(part.extra, len(part)) for part in parts])
    return Spliced(woven(words, embeds), labels, video_id, sequence_id, sides, padding)


def joined_sides(parts: Sequence[tuple[tuple[Tensor, ...], int]]) -> tuple[Tensor, ...]:
    """Join the side features of several parts; a part is its features and its number of tokens.

    New tokens have none. Beside tokens that have some they get zeros, which add nothing.
    """
    like = next((extra for extra, _ in parts if extra), ())
    filled = [extra or tuple(side.new_zeros(count, *side.shape[1:]) for side in like) for extra, count in parts]
    return tuple(torch.cat(sides) for sides in zip(*filled, strict=True))
