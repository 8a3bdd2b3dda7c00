"""The interfaces everything is built from; read this page first.

An mp4 file becomes `Frames`; a `Host` encodes them to `VideoFeatures`; a `TokenCompressor` turns those into few
`VideoTokens`; the host splices them into the prompt; the language model answers. Letters as in `langdc.types`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from langdc.types import FeatureGrid, Frames, Prompt, Spliced, VideoFeatures, VideoTokens


class TokenCompressor(nn.Module, ABC):
    """Features in, fewer tokens out, before the language model."""

    needs: ClassVar[frozenset[str]] = frozenset({"main"})
    """What the host must compute for this compressor: "main" (grids in host width), "raw", "saliency", "question"."""

    @abstractmethod
    def forward(self, video: VideoFeatures) -> VideoTokens:
        """Compress one video."""

    def batch(self, videos: list[VideoFeatures]) -> list[VideoTokens]:
        """Compress several videos; the same as one by one, in one call where a method can."""
        return [self(video) for video in videos]


class LearnedCompressor(TokenCompressor):
    """A compressor with weights of its own, trained by stages."""


@dataclass(frozen=True, eq=False)
class Captioned:
    """What a captioner made of the segments of several videos.

    `states`: per video and segment, one vector [n,Z] per caption token (the soft tokens before their projection);
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
        """Turn states into tokens in host width, in order of segments (after the base compressor's tokens, if any)."""


class Host(nn.Module, ABC):
    """One large model's habits: how it encodes, prompts and numbers positions. Wraps a stock model, changes none."""

    language_model: PreTrainedModel
    text_model: nn.Module
    """The language model without its head."""
    lm_head: nn.Module
    """From host width to logits."""
    tokenizer: PreTrainedTokenizerBase
    encoders: nn.ModuleDict
    projectors: nn.ModuleDict
    segments: int
    frames_per_segment: int
    width: int
    """D."""
    stream_widths: dict[str, int]
    """C of each encoder, by stream name."""
    stream_sides: dict[str, int]
    """H = W of each encoder's grid, by stream name."""
    end_ids: list[int]
    """Ids that end a reply."""

    @abstractmethod
    def encoder_flops(self, frames: int) -> float:
        """Floating-point operations of the encoders over T frames, up to the layer that is read."""

    @abstractmethod
    def see(self, videos: list[Frames]) -> list[Mapping[str, FeatureGrid]]:
        """Run the frozen encoders: raw grids by encoder name. This is what may be stored."""

    @abstractmethod
    def features(
        self, raw: Sequence[Mapping[str, FeatureGrid]], seconds: list[Tensor], need: frozenset[str]
    ) -> list[VideoFeatures]:
        """Project raw grids as far as `need` asks; gradients flow to the projectors."""

    def encode(self, videos: list[Frames], need: frozenset[str] = frozenset({"main"})) -> list[VideoFeatures]:
        """`see`, then `features`."""
        return self.features(self.see(videos), [video.seconds for video in videos], need)

    @abstractmethod
    def prompt(self, messages: list[dict], learn: bool = False) -> Prompt:
        """Turn chat messages into ids with slots for their videos; with `learn`, labels on the assistant's turns.

        A message is {"role": ..., "content": str or list of {"type": "text", "text": ...} and {"type": "video"}}.
        """

    @abstractmethod
    def splice(self, prompts: list[Prompt], tokens: list[list[VideoTokens]]) -> list[Spliced]:
        """Embed prompts (in one call) and put the tokens of each prompt's videos into its slots."""
