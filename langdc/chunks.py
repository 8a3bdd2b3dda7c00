"""Cutting the videos of a prompt into chunks that are read one after the other.

Letters: M prompt+video length, n tokens.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from langdc.types import Chunk

PerVideo = int | Sequence[int | None] | None
"""A number for all videos of a prompt, or one for each in order of appearance; None where it is unknown."""


def chunks_of(
    video: Tensor, chunk_tokens: PerVideo = None, frame_tokens: PerVideo = None, anchor: Tensor | None = None
) -> Iterator[Chunk]:
    """Cut each video of a prompt into chunks of `chunk_tokens` video tokens; the last one may be shorter.

    `video` [M]: true at video tokens, or the number of their video, and -1 at text. Text between the frames of a video
    belongs to the chunk of the frame after it.
    """
    numbers = numbered(video) if video.dtype == torch.bool else video
    clips = in_order(numbers)
    sizes = zip(clips, _each(chunk_tokens, len(clips)), _each(frame_tokens, len(clips)), strict=True)
    for video_id, size, frame in sizes:
        places = (numbers == video_id).nonzero()[:, 0]
        size = len(places) if size is None else size
        if size < 1:
            raise ValueError(f"A chunk of {size} tokens was asked for; it needs at least one.")
        ends = (torch.cat([places[size - 1 :: size], places[-1:]]).unique() + 1).tolist()
        for start, stop in zip([int(places[0]), *ends[:-1]], ends, strict=True):
            rows = slice(start, stop)
            yield Chunk(rows, video_id, numbers[rows] == video_id, frame, None if anchor is None else anchor[rows])


def in_order(numbers: Tensor) -> list[int]:
    """The videos of a prompt, by where they begin; ValueError if one begins within another."""
    spans = {int(video_id): (numbers == video_id).nonzero()[:, 0] for video_id in numbers.unique() if video_id >= 0}
    clips = sorted(spans, key=lambda video_id: int(spans[video_id][0]))
    for one, other in pairwise(clips):
        if spans[one][-1] > spans[other][0]:
            raise ValueError(f"Video {other} begins within video {one}; frames of two videos cannot take turns.")
    return clips


def _each(given: PerVideo, videos: int) -> Sequence[int | None]:
    numbers = given if isinstance(given, Sequence) else [given] * videos
    if len(numbers) != videos:
        raise ValueError(f"{len(numbers)} sizes were given for {videos} videos; give one for each, or one for all.")
    return numbers


def numbered(video: Tensor) -> Tensor:
    """Runs of true entries, numbered from 0; -1 elsewhere."""
    starts = video & ~torch.cat([video.new_zeros(1), video[:-1]])
    return torch.where(video, starts.cumsum(0) - 1, -1)


def tokens_per_chunk(chunk_frames: int, frames: int, tokens: int, most: int | None = None) -> int:
    """How many of a video's `tokens` belong to `chunk_frames` (at most `most`) of its `frames`; at least one."""
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames={chunk_frames}; a chunk needs at least one frame.")
    return max(1, min(chunk_frames, frames, most or frames) * tokens // frames)
