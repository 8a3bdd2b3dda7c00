"""Splitting the videos of a prompt into the chunks of chunked prefill. Letters: M prompt+video length, n tokens."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from langdc.types import Chunk

PerVideo = int | Sequence[int | None] | None
"""A number for all videos of a prompt, or one per video in order of appearance; None: unknown."""


def chunks_of(
    video: Tensor, chunk_tokens: PerVideo = None, frame_tokens: PerVideo = None, anchor: Tensor | None = None
) -> Iterator[Chunk]:
    """Chunks of `chunk_tokens` video tokens of each video (the last may be shorter). `video` [M]: video ids, -1 at
    text, or true at videos. Text between frames goes with the next frame. `frame_tokens`, `anchor` [M]: see `Chunk`.
    """
    ids = _ids(video)
    videos = videos_in_order(ids)
    sizes = zip(videos, _per_video(chunk_tokens, len(videos)), _per_video(frame_tokens, len(videos)), strict=True)
    for video_id, size, frame in sizes:
        rows_of_video = (ids == video_id).nonzero()[:, 0]
        size = len(rows_of_video) if size is None else size
        if size < 1:
            raise ValueError(f"A chunk of {size} tokens was asked for; it needs at least one.")
        ends = (torch.cat([rows_of_video[size - 1 :: size], rows_of_video[-1:]]).unique() + 1).tolist()
        for start, stop in zip([int(rows_of_video[0]), *ends[:-1]], ends, strict=True):
            rows = slice(start, stop)
            yield Chunk(rows, video_id, ids[rows] == video_id, frame, None if anchor is None else anchor[rows])


def numbers_in_frames(video: Tensor, frame_tokens: PerVideo) -> Tensor | None:
    """The number of each row within its frame [M], -1 at text and behind a video's last frame; None where
    `frame_tokens` of a video are unknown. `video` as above.
    """
    ids = _ids(video)
    numbers, videos = torch.full_like(ids, -1), videos_in_order(ids)
    for video_id, size in zip(videos, _per_video(frame_tokens, len(videos)), strict=True):
        if not size:
            return None
        rows = (ids == video_id).nonzero()[:, 0]
        whole = rows[: len(rows) // size * size]
        numbers[whole] = torch.arange(len(whole)) % size
    return numbers


def _ids(video: Tensor) -> Tensor:
    """Video ids [M] of rows; each run of true entries is a video."""
    if video.dtype != torch.bool:
        return video
    starts = video & ~torch.cat([video.new_zeros(1), video[:-1]])
    return torch.where(video, starts.cumsum(0) - 1, -1)


def videos_in_order(ids: Tensor) -> list[int]:
    """The video ids of a prompt's rows [M], in order of appearance; ValueError if one begins within another."""
    rows = {int(video_id): (ids == video_id).nonzero()[:, 0] for video_id in ids.unique() if video_id >= 0}
    ordered = sorted(rows, key=lambda video_id: int(rows[video_id][0]))
    for one, other in pairwise(ordered):
        if rows[one][-1] > rows[other][0]:
            raise ValueError(f"Video {other} begins within video {one}; frames of two videos cannot take turns.")
    return ordered


def _per_video(given: PerVideo, videos: int) -> Sequence[int | None]:
    sizes = given if isinstance(given, Sequence) else [given] * videos
    if len(sizes) != videos:
        raise ValueError(f"{len(sizes)} sizes were given for {videos} videos; give one for each, or one for all.")
    return sizes


def tokens_per_chunk(chunk_frames: int, frames: int, tokens: int, max_frames: int | None = None) -> int:
    """How many of a video's `tokens` belong to `chunk_frames` (at most `max_frames`) of its `frames`; at least one."""
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames={chunk_frames}; a chunk needs at least one frame.")
    return max(1, min(chunk_frames, frames, max_frames or frames) * tokens // frames)
