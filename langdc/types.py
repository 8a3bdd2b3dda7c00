"""The data that flows through the project: frames, features, tokens, prompts, answers.

Letters: T frames, H W patch grid, P = H*W, C encoder width, D backbone width, N tokens kept, S segments,
M prompt+video length. Every class is a frozen dataclass; ranks and lengths are checked once, when it is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, eq=False)
class Frames:
    """Decoded frames: `pixels` [T,3,height,width] uint8 and their times `seconds` [T]. An image is a video of T=1."""

    pixels: Tensor
    seconds: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        _require(
            self.pixels.ndim == 4 and shape[1] == 3 and shape[0] > 0,
            f"Frames.pixels has shape {shape}; it needs [T,3,height,width] with at least one frame.",
        )
        _require(
            self.seconds.shape == shape[:1],
            f"Frames.seconds has shape {tuple(self.seconds.shape)}; pixels hold {shape[0]} frames.",
        )

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Sampling:
    """Which frames a model looks at: `frames_per_segment` in each of `segments` equal parts, resized to `size`.

    `size` is (height, width), None for the file's own; `resample` is "bilinear" or "bicubic".
    """

    segments: int
    frames_per_segment: int
    size: tuple[int, int] | None = None
    resample: str = "bilinear"


@dataclass(frozen=True, eq=False)
class FeatureGrid:
    """What an encoder sees of a video: `values` [T,H,W,C].

    `saliency` [T,H,W] is how much the encoder itself attends to each place; `extra` holds further grids [T,H,W,*]
    that travel with the tokens.
    """

    values: Tensor
    saliency: Tensor | None = None
    extra: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        _require(len(shape) == 4, f"FeatureGrid.values has shape {shape}; it needs [T,H,W,C].")
        for other in (*self.extra, *((self.saliency,) if self.saliency is not None else ())):
            _require(other.shape[:3] == shape[:3], f"A side grid of shape {tuple(other.shape)} does not fit {shape}.")

    @property
    def tokens(self) -> int:
        """T*H*W."""
        return self.values.shape[:3].numel()


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """One video as a compressor gets it.

    `projected`: grids in backbone width, one per stream (VideoGPT+ has two: image, video), empty when no compressor
    asked for them; `encoder`: encoder outputs by name; `seconds` [T]; `question`: the embedded question [M',D], for
    guided methods.
    """

    projected: tuple[FeatureGrid, ...]
    encoder: Mapping[str, FeatureGrid]
    seconds: Tensor
    question: Tensor | None = None

    def __post_init__(self) -> None:
        _require(bool(self.projected) or bool(self.encoder), "VideoFeatures holds neither projected nor encoded grids.")


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """The tokens that stand for a video in the language model: `values` [N,D].

    `segment` [N] says which segment a token tells of (streams and base tokens follow each other, so it may start over);
    `source` [N] is the flat index into T*H*W that a kept token came from, None when tokens are new (learned or merged);
    `anchor` [N] marks tokens that must not be evicted later; `extra` [N,*] travels along.
    """

    values: Tensor
    segment: Tensor
    source: Tensor | None = None
    anchor: Tensor | None = None
    extra: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        _require(self.values.ndim == 2, f"VideoTokens.values has shape {tuple(self.values.shape)}; it needs [N,D].")
        for name, side in self._sides():
            _require(
                len(side) == len(self.values),
                f"VideoTokens.{name} has {len(side)} rows; values has {len(self.values)}.",
            )

    def _sides(self) -> list[tuple[str, Tensor]]:
        named = [("segment", self.segment), ("source", self.source), ("anchor", self.anchor)]
        return [(name, side) for name, side in named if side is not None] + [("extra", e) for e in self.extra]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Tensor) -> Self:
        """The tokens at `index` [n], with everything that travels with them."""
        picked = {
            f.name: getattr(self, f.name)[index] if isinstance(getattr(self, f.name), Tensor) else getattr(self, f.name)
            for f in fields(self)
        }
        return replace(self, **{**picked, "extra": tuple(e[index] for e in self.extra)})

    def per_segment(self, segments: int) -> list[int]:
        """How many tokens each of `segments` segments got."""
        return torch.bincount(self.segment.cpu(), minlength=segments).tolist()


@dataclass(frozen=True)
class Slot:
    """Where tokens go: before `ids[position]` of the prompt stand the tokens of video number `video`.

    `segment`: only those of that segment, where text stands between the segments of a video. `times` [T], `height` and
    `width`: the video's whole grid as positions see it, for models that number tokens by time, row and column.
    """

    position: int
    video: int
    segment: int | None = None
    times: tuple[int, ...] = ()
    height: int = 0
    width: int = 0


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids of a conversation [M'] without its videos, whose places are the `slots`.

    `labels` [M'] are the ids to learn, -100 elsewhere; `branch` [M'] is 0 for what everything sees and k for the k-th
    of several questions that share the videos but not each other.
    """

    ids: Tensor
    labels: Tensor | None = None
    slots: tuple[Slot, ...] = ()
    branch: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "branch"):
            side = getattr(self, name)
            _require(
                side is None or side.shape == self.ids.shape,
                f"Prompt.{name} has {0 if side is None else len(side)} entries; ids has {len(self.ids)}.",
            )
        last = 0
        for slot in self.slots:
            _require(
                last <= slot.position <= len(self.ids),
                f"Slot at position {slot.position} of {len(self.ids)} prompt ids; slots must be inside and in order.",
            )
            last = slot.position


@dataclass(frozen=True, eq=False)
class Spliced:
    """A prompt with its videos in place: `embeds` [M,D], `labels` [M], `branch` [M].

    `clip` [M]: which video a row belongs to, -1 at text; `extra` [n,D]: side features of the n rows of videos.
    """

    embeds: Tensor
    labels: Tensor | None
    clip: Tensor
    branch: Tensor | None = None
    extra: tuple[Tensor, ...] = ()

    @property
    def video(self) -> Tensor:
        """True at rows of videos: [M]."""
        return self.clip >= 0


@dataclass(frozen=True, eq=False)
class Chunk:
    """A run of a prompt's rows that the language model reads at once; afterwards each layer drops keys.

    `rows` of the prompt, Q of them; `clip`: which video they belong to; `video` [Q] is false at text between frames,
    which is never dropped; `frame_tokens`: how many of them make a frame, None where that differs; `anchor` [Q] marks
    tokens to keep first; `guide`: how many tokens of the question were read behind the chunk, for scoring only; `past`:
    how many keys each layer held before.
    """

    rows: slice
    clip: int
    video: Tensor
    frame_tokens: int | None = None
    anchor: Tensor | None = None
    guide: int = 0
    past: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start


@dataclass(frozen=True, eq=False)
class Plan:
    """What is known before a prompt is read: its `chunks`, `embeds` [M,D], and the model's `layers` and `key_heads`."""

    chunks: tuple[Chunk, ...]
    embeds: Tensor
    layers: int
    key_heads: int


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model said about a video and what it cost.

    `tokens`: video tokens the language model read; `segment_tokens`: how many of them each segment got; `flops` by
    part; `seconds` by stage (as in `langdc.timing`); `peak_bytes` on an accelerator, else None;
    `captions`: the caption behind each segment, for compressors that write one; `tokens_before`: what the encoders
    saw; `keys_per_layer`: keys that each layer held when the reply began, text included, where keys were dropped;
    `kv_bytes`: what all layers held then, and how much of it, `kv_text_bytes`, was of the text, which is never dropped;
    `reply_tokens`: how many were written, the one that ends the reply included.
    """

    text: str
    tokens: int
    segment_tokens: list[int]
    seconds: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    captions: list[str] | None = None
    tokens_before: int = 0
    keys_per_layer: list[int] | None = None
    kv_bytes: int = 0
    kv_text_bytes: int = 0
    reply_tokens: int = 0

    def __str__(self) -> str:
        return self.text
