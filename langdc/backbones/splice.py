"""Putting the tokens of videos into a prompt, piece by piece: no placeholder ids to keep in step with features.

Letters: D backbone width, N tokens, M prompt+video length.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from langdc.backbones.chat import IGNORED
from langdc.types import Prompt, Spliced, VideoTokens


def splice_all(embed: nn.Module, prompts: list[Prompt], tokens: list[list[VideoTokens]]) -> list[Spliced]:
    """Embed prompts in one call of `embed` and put each one's videos into its slots; ValueError where they differ."""
    device = next(embed.parameters()).device
    lengths = [len(prompt.ids) for prompt in prompts]
    words = embed(torch.cat([prompt.ids for prompt in prompts]).to(device)).split(lengths)
    return [_splice(p, w, t) for p, w, t in zip(prompts, words, tokens, strict=True)]


def slot_tokens(prompt: Prompt, videos: list[VideoTokens]) -> Iterator[VideoTokens]:
    """The tokens of each slot of a prompt, in order; ValueError if videos are missing or some tokens have no slot."""
    named = {slot.video for slot in prompt.slots}
    if named != set(range(len(videos))):
        raise ValueError(f"The prompt has places for {len(named)} videos, {len(videos)} were given.")
    placed = [0] * len(videos)
    for slot in prompt.slots:
        found = videos[slot.video]
        if slot.segment is not None:
            found = found.take((found.segment == slot.segment).nonzero()[:, 0])
        placed[slot.video] += len(found)
        yield found
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

    text = torch.full((len(words),), -1, device=words.device)
    numbers = [torch.full((len(part),), video_id) for part, video_id in zip(parts, video_ids, strict=True)]
    return Spliced(
        woven(words, [part.values for part in parts]),
        woven(prompt.labels.to(words.device), filled(IGNORED)) if prompt.labels is not None else None,
        woven(text, numbers),
        woven(prompt.sequence_id.to(words.device), filled(0)) if prompt.sequence_id is not None else None,
        _joined_sides(parts),
        _padding(parts, woven, text),
    )


def _padding(parts: list[VideoTokens], woven: Callable[[Tensor, list[Tensor]], Tensor], text: Tensor) -> Tensor | None:
    """True at rows of padding [M]; None where there is none."""
    if all(part.padding is None for part in parts):
        return None
    marks = [torch.zeros(len(part), dtype=torch.bool) if part.padding is None else part.padding for part in parts]
    return woven(text >= 0, marks)


def _joined_sides(parts: list[VideoTokens]) -> tuple[Tensor, ...]:
    """Side features of all tokens; zeros, which add nothing, for new tokens beside others that have them."""
    like = next((part.extra for part in parts if part.extra), ())
    filled = [part.extra or tuple(side.new_zeros(len(part), *side.shape[1:]) for side in like) for part in parts]
    return tuple(torch.cat(sides) for sides in zip(*filled, strict=True))
