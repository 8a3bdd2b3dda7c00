"""The data that flows through the project: frames, features, tokens, batches, prompts, answers.

Frozen dataclasses, which check ranks and lengths when they are made. Letters: T frames, H W patch grid, P = H*W,
C encoder width, D backbone width, N tokens kept, S segments, M prompt+video length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        shape, times = tuple(self.pixels.shape), tuple(self.seconds.shape)
        fits = len(shape) == 4 and shape[1] == 3 and shape[0] > 0
        _require(fits, f"Frames.pixels has shape {shape}; it needs [T,3,height,width] with at least one frame.")
        _require(times == shape[:1], f"Frames.seconds has shape {times}; pixels hold {shape[0]} frames.")

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class FrameSpec:
    """Which frames of which file, or folder of frames: `frames_per_segment` in each of `segments` equal parts.

    `start` and `end` in seconds; `size`: height and width that frames are resized to while reading, the file's own
    where None; `resample`: "bilinear" or "bicubic"; `fps`: frames per second, of a folder of frames only; `decoder`:
    that of a video, as `langdc.video.read_frames` takes it; `times`: the seconds of the frames, where they were chosen.
    """

    path: Path
    segments: int
    frames_per_segment: int
    start: float | None = None
    end: float | None = None
    size: tuple[int, int] | None = None
    resample: str = "bilinear"
    fps: float | None = None
    decoder: str = "pyav"
    times: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class FeatureGrid:
    """An encoder's features of a video: `values` [T,H,W,C]. `saliency` [T,H,W]: its attention to each patch; `extra`:
    side grids [T,H,W,*]; of projected grids, what a language model adds to its layers (DeepStack), selected with the
    tokens; `size`: height and width of the image that T crops are of.
    """

    values: Tensor
    saliency: Tensor | None = None
    extra: tuple[Tensor, ...] = ()
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        _require(len(shape) == 4, f"FeatureGrid.values has shape {shape}; it needs [T,H,W,C].")
        for side in (*self.extra, self.saliency):
            if side is not None and side.shape[:3] != shape[:3]:
                raise ValueError(f"A side grid of shape {tuple(side.shape)} does not fit {shape}.")

    @property
    def tokens(self) -> int:
        """`T*H*W`."""
        return self.values.shape[:3].numel()

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "FeatureGrid":
        """The same on a device; values and side grids in `dtype`, if given."""
        moved = self._each(lambda part: part.to(device, non_blocking=device.type != "cpu"))
        if dtype is None:
            return moved
        # after the copy, since types are changed where a tensor was
        return replace(moved, values=moved.values.to(dtype), extra=tuple(side.to(dtype) for side in moved.extra))

    def pin_memory(self) -> "FeatureGrid":
        """The same in memory from which a device copies while others go on."""
        return self._each(Tensor.pin_memory)

    def _each(self, work: Callable[[Tensor], Tensor]) -> "FeatureGrid":
        saliency = None if self.saliency is None else work(self.saliency)
        return FeatureGrid(work(self.values), saliency, tuple(map(work, self.extra)), self.size)


Grids = Mapping[str, FeatureGrid]
"""One video's encoder grids by stream name."""


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """One video as a compressor gets it.

    `projected`: grids in backbone width, one per stream (VideoGPT+ has two: image, video), empty where they are not
    needed; `encoder`: encoder outputs by name; `seconds` [T]; `question`: the embedded question [M',D].
    """

    projected: tuple[FeatureGrid, ...]
    encoder: Grids
    seconds: Tensor
    question: Tensor | None = None

    def __post_init__(self) -> None:
        _require(bool(self.projected) or bool(self.encoder), "VideoFeatures holds neither projected nor encoder grids.")

    @property
    def is_image(self) -> bool:
        """Whether it is an image: a video of one frame."""
        return len(self.seconds) == 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """T, H and W of the first grid, in backbone width where there is one."""
        steps, height, width = (self.projected or tuple(self.encoder.values()))[0].values.shape[:3]
        return steps, height, width


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """A video's tokens for the language model: `values` [N,D].

    `segment` [N]: the segment of each token (it starts over with every stream); `source` [N]: the flat index into
    `T*H*W` of a kept token, None when tokens are new (learned or merged); `anchor` [N]: tokens that must not be evicted
    later; `extra` [N,*]: their side features; `padding` [N]: tokens that take up positions but are attended to by the
    reply alone (LangDC as released); `frame`: how many a step has, where they are all of a grid of one stream.
    """

    values: Tensor
    segment: Tensor
    source: Tensor | None = None
    anchor: Tensor | None = None
    extra: tuple[Tensor, ...] = ()
    padding: Tensor | None = None
    frame: int | None = None

    def __post_init__(self) -> None:
        _require(self.values.ndim == 2, f"VideoTokens.values has shape {tuple(self.values.shape)}; it needs [N,D].")
        named = [(name, getattr(self, name)) for name in ("segment", "source", "anchor", "padding")]
        for name, side in [*named, *(("extra", side) for side in self.extra)]:
            if side is not None and len(side) != len(self.values):
                raise ValueError(f"VideoTokens.{name} has {len(side)} rows; values has {len(self.values)}.")

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Tensor) -> Self:
        """The tokens at `index` [n], with their side features."""
        picked = {name: side[index] for name, side in vars(self).items() if isinstance(side, Tensor)}
        return replace(self, **picked, extra=tuple(side[index] for side in self.extra), frame=None)

    def per_segment(self, segments: int) -> list[int]:
        """How many tokens each of `segments` segments got."""
        return torch.bincount(self.segment.cpu(), minlength=segments).tolist()


@dataclass(frozen=True, eq=False)
class Context:
    """What a compressor knows beside the videos; every field has its default when a trained model is used.

    `training`; `progress`: completed fraction of the run, for annealed budgets; `generator`: random numbers seeded by
    run and step, the same after a resume; `targets`: by name, what its losses learn from, one entry per video, None
    where its record lacks it ("captions": ids by segment); `wanted`: "tokens" and the names of the losses to compute;
    `synced`: ranks must make equal numbers of module calls (ZeRO-3).
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
    """One use of a language model with sizes `config`: `read` tokens at once, predictions at `scored` of them, then
    `written` predictions one by one, with the end token's; the first of them reads no token of its own.
    """

    config: Any
    read: int
    scored: int = 0
    written: int = 0


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressor's output for a batch of videos.

    `tokens`: one entry per video, none where they were not wanted. `losses`: the compressor's own, by name, each a sum
    (a scalar with gradients) and a count; the trainer adds both up over micro-batches and ranks, divides once, and
    weighs by `loss_weights`. `ids`: the text written for each segment, per video. `states`: tensors per video made by a
    frozen part, which the framework may store and give back as `Context.targets["states"]`. `work`: per video, the uses
    of language models inside the compressor.
    """

    tokens: list[VideoTokens]
    losses: Mapping[str, tuple[Tensor, int]] = field(default_factory=dict)
    ids: list[list[Tensor]] | None = None
    states: list[list[Tensor]] | None = None
    work: Sequence[Sequence[LanguageWork]] | None = None

    def __post_init__(self) -> None:
        for name, loss in self.losses.items():
            pair = isinstance(loss, tuple) and len(loss) == 2 and isinstance(loss[0], Tensor) and loss[0].ndim == 0
            _require(pair, f"Compressed.losses[{name!r}] is no pair of a sum, a scalar tensor, and a count.")


@dataclass(frozen=True)
class Slot:
    """A place for tokens: those of the video with index `video` go before `ids[position]` of the prompt.

    `segment`: only those of that segment, where there is text between the segments. `times` [T], `height`, `width`: the
    video's whole grid, for models whose positions are time, row and column; `segment_steps`: T steps per segment.
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
    """Token ids of a conversation [M'] without its videos, which go into the `slots`.

    `labels` [M']: the ids to learn, -100 elsewhere; `sequence_id` [M'], for packing: 0 for what every question attends
    to, k for the k-th of several questions that share the videos but do not attend to each other.
    """

    ids: Tensor
    labels: Tensor | None = None
    slots: tuple[Slot, ...] = ()
    sequence_id: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.ids)
        for name, side in (("labels", self.labels), ("sequence_id", self.sequence_id)):
            if side is not None and side.shape != self.ids.shape:
                raise ValueError(f"Prompt.{name} has {len(side)} entries; ids has {count}.")
        last = 0
        for place in (slot.position for slot in self.slots):
            inside = last <= place <= count
            _require(inside, f"Slot at position {place} of {count} prompt ids; slots must be inside and in order.")
            last = place


@dataclass(frozen=True, eq=False)
class Spliced:
    """A prompt with its videos' tokens: `embeds` [M,D], `labels` [M], `sequence_id` [M] (these two where the prompt's
    are, on the CPU), `video_id` [M] (-1 at text), `extra` [n,D] of the n rows of videos, `padding` [M] (see
    `VideoTokens`), `sample_id` [M], on the CPU, the number of the prompt where rows are packed.
    """

    embeds: Tensor
    labels: Tensor | None
    video_id: Tensor
    sequence_id: Tensor | None = None
    extra: tuple[Tensor, ...] = ()
    padding: Tensor | None = None
    sample_id: Tensor | None = None

    @property
    def video(self) -> Tensor:
        """True at rows of videos: [M]."""
        return self.video_id >= 0


@dataclass(frozen=True, eq=False)
class TextInputs:
    """What a language model is called with for B prompts, padded to one length M.

    `embeds` [B,M,D]; `mask` [B,M], 1 at real positions, or, for packed ones, [B,1,M,M], added to attention scores;
    `positions` [A,B,M]; `labels` [B,M] or None, where those of the prompts are (on the CPU); `extra`: further keyword
    arguments, such as DeepStack's; `spliced`: the prompts before they were padded.
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

    `raw`: encoder grids of each video by stream, or `frames` to encode in the step; `seconds` [T] of each; `prompts`;
    `shows`: per prompt, the batch's index of each of its videos; `targets`: by name, one entry per video, for the
    compressor's losses; `questions`: ids of each video's question, for compressors that need it; `whole`: the prompts
    for uncompressed videos, where those differ. `blank`: the only video is a dummy for a batch of text alone, so that
    all ranks make the same calls; its losses are not counted. `packed`: prompts may share rows of the language model.
    `where`: file and line of each record, for messages.
    """

    raw: Sequence[Grids]
    seconds: Sequence[Tensor]
    prompts: Sequence[Prompt] = ()
    shows: Sequence[Sequence[int]] = ()
    targets: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    questions: Sequence[Tensor] | None = None
    whole: Sequence[Prompt] = ()
    blank: bool = False
    frames: Sequence[Frames] = ()
    packed: bool = False
    where: Sequence[str] = ()

    def pin_memory(self) -> Self:
        """The same with videos in memory from which a device copies while others go on; a data loader calls this."""
        raw = [{name: grid.pin_memory() for name, grid in grids.items()} for grids in self.raw]
        return replace(self, raw=raw, frames=[Frames(v.pixels.pin_memory(), v.seconds) for v in self.frames])


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive rows of a prompt that the language model reads at once; afterwards each layer drops keys.

    `rows` of the prompt, Q of them; `video_id`: their video; `video` [Q]: false at text between frames, which is never
    dropped; `frame_tokens`: tokens per frame, None where that differs; `anchor` [Q]: tokens to keep first (both masks
    are on the CPU); `question_window`: how many tokens of the question were read after the chunk, for scoring only;
    `past`: keys that each layer held before.
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
    """A reply about a video, and its cost.

    `tokens`: video tokens the language model read; `segment_tokens`: those of each segment; `flops` by part; `seconds`
    by stage (see `langdc.timing`); `peak_bytes` on an accelerator, else None; `captions` of the segments, of
    compressors that write any; `tokens_before`: tokens before compression; `keys_per_layer`: keys that each layer held
    when the reply began, text included, where keys were dropped; `kv_bytes`: bytes of all layers then, `kv_text_bytes`:
    those of the text, which is never dropped; `reply_tokens`: tokens written, the end token included.
    """

    text: str
    tokens: int = 0
    segment_tokens: list[int] = field(default_factory=list)
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
