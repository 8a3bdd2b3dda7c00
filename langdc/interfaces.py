"""The interfaces everything is built from; read this page first.

An mp4 file becomes `Frames`; a `Backbone` encodes them to `VideoFeatures`; a `TokenCompressor` turns those into few
`VideoTokens`; the backbone splices them into the prompt; the language model answers. Letters as in `langdc.types`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from langdc import compat
from langdc.types import (
    Chunk,
    Compressed,
    Context,
    FeatureGrid,
    Frames,
    FrameSpec,
    Grids,
    Plan,
    Prompt,
    Spliced,
    VideoBatch,
    VideoFeatures,
    VideoTokens,
)


class FrameSelector(ABC):
    """Before encoding, chooses the frames of a video that are read for a question, among small ones at a low rate."""

    paper: ClassVar[str] = ""
    """Where the method was published."""
    fps: float = 1.0
    most: int = 1024
    """How many frames a second it sees, evenly spaced, and how many in all; at most those that the video has."""
    side: int = 224
    """Their shorter side in pixels."""
    blind: bool = False
    """Whether it looks at neither frames nor question: none are decoded for it, and the backbone's own are read."""

    @abstractmethod
    def select(self, frames: Frames, question: str, budget: int) -> Tensor:
        """Which of T frames, on the model's device, are read: [n], ascending, n from 1 to `budget`."""


class TokenCompressor(nn.Module, ABC):
    """Features in, fewer tokens out, before the language model. A method without weights writes `one` and nothing else.

    A learned method overrides `forward`, which is the only entry (always through `__call__`, so that the hooks of
    ZeRO-3, FSDP and torch.compile see every call). It makes the same module calls whatever the batch holds.
    """

    needs: frozenset[str] = frozenset({"projected"})
    """What it reads: "projected" (grids in backbone width), "encoder" (the encoders' own grids), "saliency" (the
    encoder's attention), "question" (one question a sequence; `VideoFeatures.question`)."""
    losses: frozenset[str] = frozenset()
    """Names of the losses it can return in training."""
    paper: ClassVar[str] = ""
    """Where the method was published."""
    frames_per_segment: int = 1
    """How many steps T of a grid make one `segment` of its tokens."""
    needs_with_states: frozenset[str] | None = None
    """What it still reads of a video whose stored states are given; None: all of `needs`."""

    def one(self, video: VideoFeatures) -> VideoTokens:
        """Compress one video."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither `one` nor `forward`.")

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        """Compress a batch of videos; the tokens of each are the same as when it is compressed alone."""
        return Compressed([self.one(video) for video in videos] if "tokens" in context.wanted else [])

    def targets(self, record: Any) -> Mapping[str, Any]:
        """What its losses learn from a `langdc.data.records.Record`, by name, for `Context.targets`; default: nothing.
        A name is left out where the record lacks it. Called by workers that load data, so it touches no device.
        """
        return {}

    def loss_counts(self, targets: Mapping[str, Any]) -> Mapping[str, int]:
        """Over how many items each loss is summed for one video, known before it is compressed; the trainer divides by
        the sum over micro-batches and processes. Default: one for each loss, a mean over videos.
        """
        return dict.fromkeys(self.losses, 1)

    def frozen_identity(self, context: Context) -> str | None:
        """A hash of what decides `Compressed.states` beside features and targets: its frozen part. None, the default:
        nothing can be stored, as it has none or trains it. Called before a sharded engine takes the weights apart.
        """
        return None

    def text(self, ids: Tensor) -> str:
        """The text of one entry of `Compressed.ids` [n], for compressors that write text."""
        raise NotImplementedError(f"{type(self).__name__} writes no text.")


class KVCompressor(ABC):
    """After each chunk of a video was read, says which keys every layer keeps. Sees tensors, never a model or a cache.

    A prompt is read in pieces: text as it stands, videos in chunks. For each chunk `observe` is called once per layer,
    then `kept` and `positions` decide. `begin` may set any of the attributes below for the prompt at hand.
    """

    chunk_frames: int = 32
    """How many frames of a video are read at once."""
    question_window: int = 0
    """How many tokens of the question (the text after the last video), counted from its end, are also read behind every
    chunk, so that they can score it; more than there are: all. Their keys are dropped."""
    position_free: bool = False
    """Whether `observe` gets queries and keys without their rotation."""
    continuous: bool = False
    """Whether the next tokens follow the last key that a layer kept directly in time, for position compaction."""
    paper: ClassVar[str] = ""
    """Where the method was published."""
    released: bool = False
    """Whether chunks, rounding and the reply's positions are those of the released code."""
    active: bool = True
    """False when the budget covers the prompt: nothing is observed, dropped or moved."""
    keeps_old: bool = False
    """Whether keys of earlier chunks are never dropped or moved, so that none of them need be touched."""
    decoding: bool = False
    """Whether it chooses what replies read, by `step`: prompts are read in one piece, all their keys are held, and of
    the other methods only `begin` is called."""

    def check(self, layers: int) -> None:
        """ValueError if it cannot work in a language model of `layers` layers, with any prompt; default: it can."""
        return

    @abstractmethod
    def begin(self, plan: Plan) -> None:
        """Get ready for a prompt."""

    def observe(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Gets a chunk's keys and values [1,G,Q,E], and queries [1,h,n,E]: the question window's, else its own."""
        return

    def spread(self, places: Tensor, length: int) -> None:
        """Called after `observe` where a layer compressor let only the rows at `places` [m] of a chunk of `length` come
        to the layer. `kept` is for the whole chunk; those that did not come are left out of what it says.
        """
        return

    def question_positions(self, chunk: Chunk, positions: Tensor) -> Tensor:
        """Positions [A,1,n] of the question window, of the prompt's [A,1,M]; default: directly after the chunk."""
        window, last = positions[:, :, -chunk.question_window :], positions[0, 0, chunk.rows.stop - 1]
        return window - (window[0, 0, 0] - last - 1)

    def kept(self, chunk: Chunk) -> list[Tensor]:
        """Per layer, the rows to keep, ascending: [n], or [G,n] where key heads differ. They index the layer's whole
        cache: `chunk.past[layer]` older keys, then the chunk, then the question window.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither `kept`, nor `step` with `decoding`.")

    def positions(self, chunk: Chunk, layer: int, old: Tensor) -> Tensor:
        """New positions of the keys of a layer's whole cache [A,1 or G,K]; default: the `old` ones."""
        return old

    def step(self, layer: int, query: Tensor, key: Tensor) -> Tensor | None:
        """Which keys of a layer a token of a reply attends to: [n], ascending; None, the default: all.
        Called in each layer in turn with the token's query [1,h,1,E] and the keys [1,G,K,E], its own last. Each reply
        has a shallow copy of the compressor, made after `begin`.
        """
        return None


@dataclass(frozen=True, eq=False)
class Rows:
    """What a layer of the language model made of n rows of a prompt: `states` [n,D].
    `index` [n]: which rows of the prompt they are, ascending; `video_id` [n]: -1 at text and at the last row; `layers`:
    how many the model has; `shown`: how many rows of the prompt are video; `asking`: how many follow the last video;
    `in_frame` [n]: the number of a row within its frame, -1 outside of them, None where frames differ in their rows.
    The rest where `LayerCompressor.needs` names it: `attention` [q,n] in float32, what each of q rows paid to each,
    averaged over query heads; `keys` [G,n,E] of the layer, rotated; `normed` [n,D]: states after the last norm.
    """

    states: Tensor
    index: Tensor
    video_id: Tensor
    layers: int
    shown: int
    asking: int
    attention: Tensor | None = None
    keys: Tensor | None = None
    normed: Tensor | None = None
    in_frame: Tensor | None = None

    @property
    def video(self) -> Tensor:
        """Which rows are video, as places among the n: [m]."""
        return (self.video_id >= 0).nonzero()[:, 0]

    @property
    def question(self) -> Tensor:
        """The places of the text after the last video [q]."""
        return torch.arange(len(self.index) - self.asking, len(self.index), device=self.index.device)

    def take(self, places: Tensor) -> Self:
        """The rows at `places` [m], ascending, with nothing that only this layer knows."""
        bare = replace(self, attention=None, keys=None, normed=None)
        return replace(bare, **{name: of[places] for name, of in vars(bare).items() if isinstance(of, Tensor)})


class LayerCompressor(ABC):
    """Inside the language model: after chosen layers have run, says which rows of the video go on to the next ones.

    All text is passed on. Rows that are passed on keep their positions; layers that have run keep all keys. A prompt is
    read in one piece; where a KV compressor asks for chunks, each chunk is compressed by itself. What `begin` returned
    is looked up before each layer, so a compressor whose work is done may empty it.
    """

    paper: ClassVar[str] = ""
    """Where the method was published."""
    halfway: ClassVar[bool] = False
    """Whether rows leave between a layer's attention and its feed-forward part, which reads only those that stay."""
    needs: frozenset[str] = frozenset()
    """What it reads beside states: the attention that the "last" row pays, or each row of the "question"; with "next",
    that which they would pay in the layer that follows; "keys"; "normed"; "frames": `Rows.in_frame`."""

    def check(self, layers: int) -> None:
        """ValueError if it cannot work in a language model of `layers` layers, with any prompt; default: it can."""
        return

    @abstractmethod
    def begin(self, rows: Rows) -> Collection[int]:
        """Get ready for a prompt as it enters the model; after which layers (-1: before the first) `keep` is called."""

    @abstractmethod
    def keep(self, layer: int, rows: Rows) -> Rows:
        """The rows that go on, as `rows.take` gives them; `states` may be changed, such as to means of merged ones."""


class Backbone(nn.Module, ABC):
    """One video language model's habits: how it encodes, prompts, numbers positions. Wraps a stock model, unchanged."""

    language_model: PreTrainedModel
    text_model: nn.Module
    """The language model without its head."""
    tokenizer: PreTrainedTokenizerBase
    encoders: nn.ModuleDict
    projectors: nn.ModuleDict
    segments: int
    """How many segments a video is sampled in, unless the file decides."""
    frames_per_segment: int
    frames_per_step: int = 1
    """How many frames the encoder joins into one step T of a grid."""
    width: int
    stream_widths: dict[str, int]
    """D, and C of each encoder's grid, by stream name."""
    end_ids: list[int]
    """Ids that end a reply."""
    has_saliency: ClassVar[bool] = False
    """Whether its encoder's attention can be had."""
    decoder: str = "pyav"
    """What decodes videos, as `langdc.video.read_frames` takes it."""
    released_axes: Literal["time", "all"] = "time"
    """Which axes of new tokens follow a shortened time line in the released code of ReTaKe for this model."""

    @property
    def preprocessing(self) -> str:
        """Fingerprint of all that decides, beside the encoders' weights, what they get of a file."""
        return f"{self.segments}x{self.frames_per_segment}{self.other_decoder}"

    @property
    def other_decoder(self) -> str:
        """Its part in `preprocessing`: nothing for PyAV; colours of others may differ by 2 of 255 levels."""
        return "" if self.decoder == "pyav" else f" {self.decoder}"

    @property
    def lm_head(self) -> nn.Module:
        """From backbone width to logits; a model that has its head elsewhere overrides this."""
        if (head := self.language_model.get_output_embeddings()) is None:
            raise ValueError(f"{type(self.language_model).__name__} has no output embeddings, so it cannot write.")
        return head

    @property
    def generation_config(self) -> GenerationConfig:
        """The model's own settings of generation; override this for others."""
        return self.language_model.generation_config or GenerationConfig()

    # ---- from a file to features
    @abstractmethod
    def frame_spec(
        self, path: str | Path, start: float | None = None, end: float | None = None, fps: float | None = None
    ) -> FrameSpec:
        """Which frames are read of a file (between `start` and `end` seconds), or of a folder with `fps` frames a
        second. The one place that decides it, for training, asking and evaluation.
        """

    @abstractmethod
    def encode(self, videos: list[Frames], need: frozenset[str] = frozenset(), synced: bool = False) -> list[Grids]:
        """Run the encoders: grids [T,H,W,C] by stream name, which may be stored. An image is a video of one frame.
        "saliency" in `need`: with the encoder's attention, of backbones with `has_saliency`. `synced`: as many module
        calls whatever the videos are. Gradients flow where the encoders are trained.
        """

    def encode_blank(self, encoded: Grids) -> int:
        """Encode a video without content whose grids have the shapes of `encoded`: what that takes is counted.
        Returns how many times it has to be taken: T where one step stands for all, which do not attend to each other.
        Default: once, for as many frames of any size; to override where grids depend on the size.
        """
        grid, device = next(iter(encoded.values())), next(self.encoders.parameters()).device
        count = len(grid.values) * self.frames_per_step
        frames = Frames(torch.zeros(count, 3, 56, 56, dtype=torch.uint8, device=device), torch.arange(count))
        self.encode([frames], frozenset() if grid.saliency is None else frozenset({"saliency"}))
        return 1

    @abstractmethod
    def project(self, encoded: Sequence[Grids], seconds: list[Tensor], need: frozenset[str]) -> list[VideoFeatures]:
        """Project grids to backbone width if "projected" is in `need`; one call of each projector for all videos."""

    def features_of(self, videos: list[Frames], need: frozenset[str] = frozenset({"projected"})) -> list[VideoFeatures]:
        """`encode`, then `project`."""
        return self.project(self.encode(videos, need), [video.seconds for video in videos], need)

    def outline(self, video: Frames) -> VideoFeatures:
        """What `prompt` has to know of a video that is not encoded yet: features of width 0."""
        return VideoFeatures((), {"video": FeatureGrid(torch.empty(len(video), 1, 1, 0))}, video.seconds)

    def blank(self) -> Frames:
        """The smallest video, for ranks whose samples show none."""
        count = max(2, self.frames_per_segment)  # of one frame it would be an image
        return Frames(torch.zeros(count, 3, 56, 56, dtype=torch.uint8), torch.arange(count).double())

    # ---- from messages and tokens to what the language model reads
    @abstractmethod
    def prompt(
        self, messages: list[dict], learn: bool = False, media: Sequence[VideoFeatures] = (), segment_steps: int = 1
    ) -> Prompt:
        """Turn chat messages into ids with slots for their videos; with `learn`, labels on the assistant's turns.

        A message is {"role": ..., "content": str or list of {"type": "text", "text": ...} and {"type": "video"}}.
        `media`: the videos (and images, {"type": "image"}) in order; only their shapes and times are read.
        `segment_steps`: the compressor's `frames_per_segment`, for backbones that write the time of each segment.
        """

    def append_newline_tokens(self, tokens: VideoTokens, video: VideoFeatures) -> VideoTokens:
        """Add to a video's tokens what the model was trained to see with them, such as newlines; default: nothing."""
        return tokens

    def positions(self, prompt: Prompt, tokens: list[VideoTokens]) -> Tensor:
        """Where a spliced prompt's tokens stand [A,1,M]; default: one after the other, on one axis."""
        return torch.arange(len(prompt.ids) + sum(map(len, tokens)), device=prompt.ids.device)[None, None]

    @abstractmethod
    def splice(self, prompts: list[Prompt], tokens: list[list[VideoTokens]]) -> list[Spliced]:
        """Embed prompts (in one call) and put the tokens of each prompt's videos into its slots."""

    def arguments(self, spliced: Spliced) -> Callable[[Tensor], Mapping[str, Any]] | None:
        """What else the text model gets for given rows of a spliced prompt; default: nothing."""
        return None

    def batch_arguments(self, items: list[Spliced], length: int, left: bool = False) -> Mapping[str, Any]:
        """What else the text model gets for prompts padded to `length`, on the left or right; default: nothing."""
        return {}


class Objective(ABC):
    """What a run learns. Members are registered in `langdc.train.objectives`; keyword arguments are its settings."""

    reads: ClassVar[bool] = True
    """Whether the language model is called; where not, it is not even loaded."""
    names: ClassVar[frozenset[str]] = frozenset()
    """Names of its losses, each a mean over the tokens of the replies, beside those of the compressor."""
    whole: ClassVar[bool] = False
    """Whether it compares with uncompressed videos, so that batches need `VideoBatch.whole`."""
    own_replies: bool = False
    """Whether it has the replies written, so that questions need no answers."""

    def samples(self, records: Sequence[Any]) -> list[Any]:
        """The records it can learn from; default: those with questions or messages."""
        return [record for record in records if record.questions or record.messages]

    def wanted(self, compressor: TokenCompressor, weights: Mapping[str, float]) -> frozenset[str]:
        """`Context.wanted` of a training step: tokens if the language model reads them, and losses with a weight."""
        own = {name for name in compressor.losses if weights.get(name, 1.0) != 0}
        return frozenset(own | ({"tokens"} if self.reads else set()))

    @abstractmethod
    def losses(self, model: Any, batch: VideoBatch, context: Context) -> dict[str, tuple[Tensor, int]]:
        """A batch's losses, also the compressor's, each a sum and a count; `model`: a `langdc.model.VideoModel`."""

    def prepare(self, model: Any, data: Any, directory: Path) -> None:
        """Called on every process before the first step, for the records to learn and for those of validation; default:
        nothing. `data`: the `langdc.train.batches.TrainingData`; `directory`: where it may write.
        """
        return

    def solve(self, model: Any, data: Any) -> tuple[float, float] | None:
        """Learn in closed form: the loss that is left and the FLOPs it took; None, the default: by gradient descent."""
        return None


def __getattr__(name: str) -> Any:
    return compat.member(__name__, name)
