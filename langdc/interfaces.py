"""The interfaces everything is built from; read this page first.

An mp4 file becomes `Frames`; a `Backbone` encodes them to `VideoFeatures`; a `TokenCompressor` turns those into few
`VideoTokens`; the backbone splices them into the prompt; the language model answers. Letters as in `langdc.types`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from langdc.types import Chunk, FeatureGrid, Frames, Plan, Prompt, Sampling, Spliced, VideoFeatures, VideoTokens


class TokenCompressor(nn.Module, ABC):
    """Features in, fewer tokens out, before the language model."""

    needs: ClassVar[frozenset[str]] = frozenset({"projected"})
    """What the backbone must compute for this compressor: "projected" (grids in backbone width), "encoder",
    "saliency", "question".
    """
    keeps_places: ClassVar[bool] = True
    """Whether its tokens stand for places of a grid, so that side features of these places can follow them."""
    paper: ClassVar[str] = ""
    """Where the method was published."""

    @abstractmethod
    def forward(self, video: VideoFeatures) -> VideoTokens:
        """Compress one video."""

    def batch(self, videos: list[VideoFeatures]) -> list[VideoTokens]:
        """Compress several videos; the same as one by one, in one call where a method can."""
        return [self(video) for video in videos]

    def flops(self, video: VideoFeatures) -> float:
        """Matrix products of compressing a video, for its report; projecting it and its captions are counted elsewhere.

        By closed form; a method whose sizes depend on what it sees works them out again. Default: there are none.
        """
        return 0.0


class LearnedCompressor(TokenCompressor):
    """A compressor with weights of its own, trained by stages."""

    keeps_places = False


@dataclass(frozen=True, eq=False)
class Captioned:
    """What a captioner made of the segments of several videos.

    `states`: per video and segment, one vector [n,Z] per caption token (the soft tokens before their projection), and
    one more where the end counts as said;
    `ids`: the caption tokens, without the end token; `loss`: summed cross-entropy (nats) over `targets` predictions,
    zero when the captions were generated.
    """

    states: list[list[Tensor]]
    ids: list[list[Tensor]]
    loss: Tensor
    targets: int


class CaptionCompressor(LearnedCompressor):
    """LangDC: a small language model describes each segment, its hidden states are the tokens.

    Work falls into a part that a later stage keeps frozen (`caption` or `supervised`: features to states) and one that
    it trains (`project`: states to tokens), so that frozen states can be computed once and kept.
    """

    @abstractmethod
    def supervised(self, videos: list[VideoFeatures], targets: list[list[Tensor]]) -> Captioned:
        """Read states off given captions (ids per segment, without end token); the end token is learned too."""

    @abstractmethod
    def caption(self, videos: list[VideoFeatures]) -> Captioned:
        """Write the captions greedily, all segments of all videos in one batch."""

    @abstractmethod
    def project(self, videos: list[VideoFeatures], states: list[list[Tensor]]) -> list[VideoTokens]:
        """Turn states into tokens in backbone width, in order of segments (after the base compressor's tokens, if
        any).
        """


class KVCompressor(ABC):
    """After each chunk of a video was read, says which keys every layer keeps. Sees tensors, never a model or a cache.

    A prompt is read in pieces: text as it stands, videos in chunks. For each chunk `observe` is called once per layer,
    then `kept` and `positions` decide. `begin` may set any of the attributes below for the prompt at hand.
    """

    chunk_frames: int = 32
    """How many frames of a video are read at once."""
    guide: int = 0
    """How many tokens, counted from the end, of the text after the last video are read behind every chunk as well, so
    that they can score it; more than there are means all. Their keys are dropped."""
    position_free: bool = False
    """Whether `observe` gets queries and keys without their rotation."""
    continuous: bool = False
    """Whether each piece's time line goes on right after the last key that a layer kept."""
    paper: ClassVar[str] = ""
    """Where the method was published."""
    active: bool = True
    """False when the budget covers the prompt: nothing is observed, dropped or moved."""
    flops: float = 0.0
    """Matrix products of `observe` since `begin`, for the report; stays 0 where it makes none."""

    @abstractmethod
    def begin(self, plan: Plan) -> None:
        """Get ready for a prompt."""

    def observe(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Look at a layer's keys and values of the chunk [1,G,Q,E], and at the queries that may score them [1,h,n,E].

        Those are the guide's where there is one, else the chunk's own.
        """
        return

    def guide_positions(self, chunk: Chunk, positions: Tensor) -> Tensor:
        """Where the guide stands [A,1,n] for a chunk; `positions` [A,1,M] are the prompt's. Default: right after it."""
        guide, last = positions[:, :, -chunk.guide :], positions[0, 0, chunk.rows.stop - 1]
        return guide - (guide[0, 0, 0] - last - 1)

    @abstractmethod
    def kept(self, chunk: Chunk) -> list[Tensor]:
        """Per layer, the rows to keep, ascending: [n], or [G,n] where key heads differ.

        They count the layer's whole cache: `chunk.past[layer]` older keys, then the chunk, then the guide.
        """

    def positions(self, chunk: Chunk, layer: int, old: Tensor) -> Tensor:
        """Where the keys of a layer's whole cache [A,1 or G,K] stand from now on; default: where they stood."""
        return old


class Backbone(nn.Module, ABC):
    """One large model's habits: how it encodes, prompts and numbers positions. Wraps a stock model, changes none."""

    language_model: PreTrainedModel
    text_model: nn.Module
    """The language model without its head."""
    lm_head: nn.Module
    """From backbone width to logits."""
    tokenizer: PreTrainedTokenizerBase
    encoders: nn.ModuleDict
    projectors: nn.ModuleDict
    segments: int
    """How many segments a video is sampled in, unless the file decides."""
    frames_per_segment: int
    frames_per_step: int = 1
    """How many frames the encoder joins into one step T of a grid."""
    width: int
    """D."""
    stream_widths: dict[str, int]
    """C of each encoder, by stream name."""
    stream_sides: dict[str, int]
    """H = W of each encoder's grid, by stream name."""
    end_ids: list[int]
    """Ids that end a reply."""
    generation_config: GenerationConfig
    """The model's own settings of generation."""
    needs_places: ClassVar[bool] = False
    """Whether side features must follow a video's tokens, so that every token has to have a place."""
    has_saliency: ClassVar[bool] = False
    """Whether it can say how much its encoder attends to each place."""
    batched: bool = False
    """Whether several prompts may be read as one padded batch."""

    @property
    def preprocessing(self) -> str:
        """All that decides, beside the encoders' weights, what they see of a file."""
        return f"{self.segments}x{self.frames_per_segment}"

    released_axes: Literal["time", "all"] = "time"
    """Which axes of new tokens follow a shortened time line in the released code of ReTaKe for this model."""

    @property
    def key_bytes(self) -> int:
        """What all layers together hold of one token: a key and a value per key head."""
        config: Any = self.text_model.config
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return (
            2 * config.num_hidden_layers * config.num_key_value_heads * head_width * self.language_model.dtype.itemsize
        )

    def sampling(
        self, path: str | Path, start: float | None = None, end: float | None = None, fps: float | None = None
    ) -> Sampling:
        """How to sample a file (between `start` and `end` seconds), or a folder of frames with `fps` of them a second.

        By default every video is sampled the same.
        """
        return Sampling(self.segments, self.frames_per_segment)

    @abstractmethod
    def encoder_flops(self, encoded: Mapping[str, FeatureGrid]) -> float:
        """Floating-point operations of the encoders behind one video's encoded grids, up to the layer that is read."""

    @abstractmethod
    def encode(self, videos: list[Frames], need: frozenset[str] = frozenset()) -> list[Mapping[str, FeatureGrid]]:
        """Run the frozen encoders: encoded grids by encoder name. This is what may be stored.

        With "saliency" in `need` grids say what the encoder attends to, of backbones with `has_saliency`.
        """

    @abstractmethod
    def project(
        self, encoded: Sequence[Mapping[str, FeatureGrid]], seconds: list[Tensor], need: frozenset[str]
    ) -> list[VideoFeatures]:
        """Project encoded grids as far as `need` asks; gradients flow to the projectors."""

    def features_of(self, videos: list[Frames], need: frozenset[str] = frozenset({"projected"})) -> list[VideoFeatures]:
        """`encode`, then `features`."""
        return self.project(self.encode(videos, need), [video.seconds for video in videos], need)

    @abstractmethod
    def prompt(self, messages: list[dict], learn: bool = False, media: Sequence[VideoFeatures] = ()) -> Prompt:
        """Turn chat messages into ids with slots for their videos; with `learn`, labels on the assistant's turns.

        A message is {"role": ..., "content": str or list of {"type": "text", "text": ...} and {"type": "video"}}.
        `media`: the videos (and images, {"type": "image"}) in order; backbones whose prompt tells of them need them.
        """

    def append_newline_tokens(self, tokens: VideoTokens, video: VideoFeatures) -> VideoTokens:
        """Add to a video's tokens what the model was trained to see with them, such as newlines; default: nothing."""
        return tokens

    def positions(self, prompt: Prompt, tokens: list[VideoTokens]) -> Tensor:
        """Where a spliced prompt's tokens stand [A,1,M]; default: one after the other, on one axis."""
        length = len(prompt.ids) + sum(len(tokens[slot.video]) for slot in prompt.slots)
        return torch.arange(length, device=prompt.ids.device)[None, None]

    @abstractmethod
    def splice(self, prompts: list[Prompt], tokens: list[list[VideoTokens]]) -> list[Spliced]:
        """Embed prompts (in one call) and put the tokens of each prompt's videos into its slots."""

    def arguments(self, spliced: Spliced) -> Callable[[Tensor], Mapping[str, Any]] | None:
        """What else the text model gets for given rows of a spliced prompt; default: nothing."""
        return None
