"""The data that flows through the project: frames, features, tokens, batches, prompts, answers.

Letters: T frames, H W patch grid, P = H*W, C encoder width, D backbone width, N tokens kept, S segments,
M prompt+video length. Every class is a frozen dataclass; ranks and lengths are checked once, when it is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

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
class FrameSpec:
    """Which frames of which file, or folder of frames: `frames_per_segment` in each of `segments` equal parts.

    `start` and `end` in seconds; `size`: height and width that frames are resized to while reading, the file's own
    where None; `resample`: "bilinear" or "bicubic"; `fps`: frames per second, of a folder of frames only.
    """

    path: Path
    segments: int
    frames_per_segment: int
    start: float | None = None
    end: float | None = None
    size: tuple[int, int] | None = None
    resample: str = "bilinear"
    fps: float | None = None


@dataclass(frozen=True, eq=False)
class FeatureGrid:
    """What an encoder sees of a video: `values` [T,H,W,C].

    `saliency` [T,H,W] is how much the encoder itself attends to each place; `extra` holds further grids [T,H,W,*]
    that travel with the tokens; `size`: height and width of the image that T crops were cut from.
    """

    values: Tensor
    saliency: Tensor | None = None
    extra: tuple[Tensor, ...] = ()
    size: tuple[int, int] | None = None

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
        _require(bool(self.projected) or bool(self.encoder), "VideoFeatures holds neither projected nor encoder grids.")

    @property
    def is_image(self) -> bool:
        """Whether these are an image's features: a video of one frame."""
        return len(self.seconds) == 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """T, H and W of the first grid, in backbone width where there is one."""
        steps, height, width = (self.projected or tuple(self.encoder.values()))[0].values.shape[:3]
        return steps, height, width


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """The tokens that stand for a video in the language model: `values` [N,D].

    `segment` [N] says which segment a token tells of (streams and base tokens follow each other, so it may start over);
    `source` [N] is the flat index into T*H*W that a kept token came from, None when tokens are new (learned or merged);
    `anchor` [N] marks tokens that must not be evicted later; `extra` [N,*] travels along. `padding` [N] marks tokens
    that use up positions but are not attended to while the prompt is read, only by the reply (LangDC as released).
    """

    values: Tensor
    segment: Tensor
    source: Tensor | None = None
    anchor: Tensor | None = None
    extra: tuple[Tensor, ...] = ()
    padding: Tensor | None = None

    def __post_init__(self) -> None:
        _require(self.values.ndim == 2, f"VideoTokens.values has shape {tuple(self.values.shape)}; it needs [N,D].")
        for name, side in self._sides():
            _require(
                len(side) == len(self.values),
                f"VideoTokens.{name} has {len(side)} rows; values has {len(self.values)}.",
            )

    def _sides(self) -> list[tuple[str, Tensor]]:
        named = [(name, getattr(self, name)) for name in ("segment", "source", "anchor", "padding")]
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


@dataclass(frozen=True, eq=False)
class Context:
    """What a compressor knows beside the videos; every field has its default when a trained model is used.

    `training`; `progress`: fraction of the run that is done, for annealed budgets; `generator`: random numbers seeded
    by the run and the step, so that a resumed run draws the same; `targets`: what its losses learn from, by name, one
    entry per video ("captions": ids by segment); `wanted`: "tokens" and the names of the losses that will be used, so
    that nothing else is computed; `synced`: ranks must make equal numbers of module calls (ZeRO-3).
    """

    training: bool = False
    progress: float = 1.0
    generator: torch.Generator | None = None
    targets: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    wanted: frozenset[str] = frozenset({"tokens"})
    synced: bool = False

    def __post_init__(self) -> None:
        _require(0 <= self.progress <= 1, f"Context.progress is {self.progress}; it is a fraction from 0 to 1.")


@dataclass(frozen=True)
class LanguageWork:
    """One use of a language model, for counting its operations by closed form: `config` says its sizes.

    `read` tokens at once, predictions at `scored` of them, then `written` predictions one after the other, those of the
    end token and after it included (the first of them needs no token of its own).
    """

    config: Any
    read: int
    scored: int = 0
    written: int = 0


@dataclass(frozen=True, eq=False)
class Compressed:
    """What a compressor makes of a batch of videos.

    `tokens`: one entry per video, none where they were not wanted. `losses`: the compressor's own, by name, each a sum
    (a scalar with gradients) and the count it was summed over; the trainer adds both up over micro-batches and ranks,
    divides once, and weighs by `loss_weights`. `ids`: what was written about each segment, per video, for compressors
    that write text. `states`: what a frozen part made of each video, any tensors, which the framework may store and
    give back as `Context.targets["states"]`. `work`: per video, the uses of language models inside the compressor.
    """

    tokens: list[VideoTokens]
    losses: Mapping[str, tuple[Tensor, int]] = field(default_factory=dict)
    ids: list[list[Tensor]] | None = None
    states: list[list[Tensor]] | None = None
    work: Sequence[Sequence[LanguageWork]] | None = None


@dataclass(frozen=True)
class Slot:
    """Where tokens go: before `ids[position]` of the prompt stand the tokens of video number `video`.

    `segment`: only those of that segment, where text stands between the segments of a video. `times` [T], `height` and
    `width`: the video's whole grid as positions see it, for models that number tokens by time, row and column;
    `segment_steps`: how many of the T steps make a segment.
    """

    position: int
    video: int
    segment: int | None = None
    times: tuple[int, ...] = ()
    height: int = 0
    width: int = 0
    segment_steps: int = 1


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids of a conversation [M'] without its videos, whose places are the `slots`.

    `labels` [M'] are the ids to learn, -100 elsewhere; `sequence_id` [M'] is 0 for what every question sees
    and k for the k-th of several questions that share the videos but not each other (packing).
    """

    ids: Tensor
    labels: Tensor | None = None
    slots: tuple[Slot, ...] = ()
    sequence_id: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "sequence_id"):
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
    """A prompt with its videos in place: `embeds` [M,D], `labels` [M], `sequence_id` [M].

    `video_id` [M]: which video a row belongs to, -1 at text; `extra` [n,D]: side features of the n rows of videos;
    `padding` [M]: rows of padding, see `VideoTokens`; None where there are none.
    """

    embeds: Tensor
    labels: Tensor | None
    video_id: Tensor
    sequence_id: Tensor | None = None
    extra: tuple[Tensor, ...] = ()
    padding: Tensor | None = None

    @property
    def video(self) -> Tensor:
        """True at rows of videos: [M]."""
        return self.video_id >= 0


@dataclass(frozen=True, eq=False)
class TextInputs:
    """What a language model is called with for B prompts, padded to one length M.

    `embeds` [B,M,D]; `mask` [B,M], 1 at real positions, or [B,1,M,M], added to attention scores, where questions share
    a video; `positions` [A,B,M]; `labels` [B,M] or None; `extra`: further keyword arguments, such as DeepStack's;
    `spliced`: the prompts before they were padded.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    spliced: tuple[Spliced, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a text model's forward."""
        positions = self.positions if len(self.positions) > 1 else self.positions[0]
        return {"inputs_embeds": self.embeds, "attention_mask": self.mask, "position_ids": positions, **self.extra}


@dataclass(frozen=True, eq=False)
class VideoBatch:
    """Prompts and the videos they show.

    `raw`: encoder grids of each video by stream, or `frames` to encode in the step; `seconds` [T] of each;
    `prompts`; `shows`: per prompt, the batch's video behind each of its video numbers; `targets`: by name, one entry
    per video, for the compressor's losses; `questions`: ids of each video's question, for compressors that need it;
    `whole`: the prompts as they are when the videos are not compressed, where those differ. `blank`: the only video
    stands in for none (text alone), so that all ranks make the same calls; its losses count for nothing.
    """

    raw: Sequence[Mapping[str, FeatureGrid]]
    seconds: Sequence[Tensor]
    prompts: Sequence[Prompt] = ()
    shows: Sequence[Sequence[int]] = ()
    targets: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    questions: Sequence[Tensor] | None = None
    whole: Sequence[Prompt] = ()
    blank: bool = False
    frames: Sequence[Frames] = ()


@dataclass(frozen=True, eq=False)
class Chunk:
    """A run of a prompt's rows that the language model reads at once; afterwards each layer drops keys.

    `rows` of the prompt, Q of them; `video_id`: which video they belong to; `video` [Q] is false at text between
    frames, which is never dropped; `frame_tokens`: how many of them make a frame, None where that differs; `anchor`
    [Q] marks tokens to keep first; `question_window`: how many tokens of the question were read behind the chunk, for
    scoring only; `past`: how many keys each layer held before.
    """

    rows: slice
    video_id: int
    video: Tensor
    frame_tokens: int | None = None
    anchor: Tensor | None = None
    question_window: int = 0
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
