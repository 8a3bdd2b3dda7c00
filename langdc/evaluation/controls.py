"""Controls: what a learned compressor must beat at its own number of tokens.

Three keep some tokens of a trained pool, as many as another row used; one gives the decoded captions as text.
Letters: T frames, D backbone width, N tokens kept.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from langdc.backbones.videogpt_plus import VideoGPTPlus
from langdc.compressors.langdc import LangDC
from langdc.compressors.pool import Pool
from langdc.hashing import tensors_hash
from langdc.interfaces import Captioned, TokenCompressor
from langdc.language_models import ids_of
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens

Count = Callable[[VideoFeatures], int]


def fingerprint(encoded: Mapping[str, FeatureGrid]) -> str:
    """The sha256 of what the encoders saw of a video: tells videos apart where only features are at hand."""
    return tensors_hash({name: grid.values for name, grid in encoded.items()})


class Subset(TokenCompressor):
    """Some of a trained pool's tokens."""

    def __init__(self, trained: TokenCompressor) -> None:
        super().__init__()
        if not isinstance(trained, Pool):
            raise ValueError(
                f"This control keeps tokens of a pool; the row's model has the compressor {type(trained).__name__}. "
                "Give the directory of a model trained with 'pool'."
            )
        self.trained = trained

    @property
    def needs(self) -> frozenset[str]:
        """What the pool needs."""
        return self.trained.needs


class RandomTokens(Subset):
    """Tokens drawn without replacement, in their order: as many as `count` says of the video, all if it has fewer.

    The draw depends on `seed` and the video alone.
    """

    def __init__(self, trained: TokenCompressor, count: Count, seed: int = 0) -> None:
        super().__init__(trained)
        self.count = count
        self.seed = seed

    def forward(self, video: VideoFeatures) -> VideoTokens:
        tokens = self.trained(video)
        number = int(fingerprint(video.encoder)[:15], 16)
        dice = torch.Generator().manual_seed((number + self.seed) % 2**63)
        index = torch.randperm(len(tokens), generator=dice)[: self.count(video)].sort().values
        return tokens.take(index.to(tokens.values.device))


class UniformFrames(Subset):
    """All tokens of some frames, evenly spaced: as many frames as fit into `most` tokens, but at least one."""

    def __init__(self, trained: TokenCompressor, most: float) -> None:
        super().__init__(trained)
        self.most = most

    def forward(self, video: VideoFeatures) -> VideoTokens:
        tokens = self.trained(video)
        frames = len(video.projected[0].values)
        kept = uniform_frames(frames, max(1, min(frames, int(self.most * frames / len(tokens)))))
        frame = frame_of_token(self.trained.sides, frames)
        return tokens.take(torch.isin(frame, kept).nonzero().squeeze(1).to(tokens.values.device))


def uniform_frames(frames: int, kept: int) -> Tensor:
    """The middles of `kept` equal parts of T frames: [kept]."""
    return ((2 * torch.arange(kept) + 1) * frames) // (2 * kept)


def frame_of_token(sides: list[int], frames: int) -> Tensor:
    """The frame behind each token of a pool, whose streams follow each other, each frame by frame: [N]."""
    return torch.cat([torch.arange(frames).repeat_interleave(side * side) for side in sides])


class CaptionText(LangDC):
    """LangDC's captions as words in place of its soft tokens: "[1] red square left [2] ...", at the same place.

    The words are embedded by the language model, so only what a token is differs. Shares the parts of `trained`.
    """

    def __init__(self, trained: TokenCompressor, backbone: VideoGPTPlus) -> None:
        if not isinstance(trained, LangDC):
            raise ValueError(f"caption_text needs a model that writes captions; this one has {type(trained).__name__}.")
        nn.Module.__init__(self)  # LangDC's own would build a second captioner
        self.pool, self.frames_per_segment = trained.pool, trained.frames_per_segment
        self.captioner, self.projectors = trained.captioner, trained.projectors
        self.post_projector, self.segment_marker, self.base = nn.Identity(), None, None
        self.embedding = backbone.language_model.get_input_embeddings()
        self.tokenizer = backbone.tokenizer

    def caption(self, videos: list[VideoFeatures], synced: bool = False) -> Captioned:
        written = super().caption(videos, synced)
        states = [
            [self._embedded(number, self.captioner.decode(ids)) for number, ids in enumerate(of_video, 1)]
            for of_video in written.ids
        ]
        return Captioned(states, written.ids, written.loss, written.targets)

    def _embedded(self, number: int, caption: str) -> Tensor:
        text = f"{' ' * (number > 1)}[{number}] {caption}".rstrip()
        return self.embedding(ids_of(self.tokenizer, text).to(next(self.embedding.parameters()).device))


def build(
    kind: str,
    trained: TokenCompressor,
    backbone: VideoGPTPlus,
    counts: Mapping[str, int],
    name_of: Callable[[str], str],
    seed: int = 0,
) -> TokenCompressor:
    """Put a control on a trained model.

    `counts`: tokens by video of the matched row; `name_of`: video by fingerprint.
    Raises ValueError for a model it does not fit.
    """
    if kind == "caption_text":
        return CaptionText(trained, backbone)
    if not counts:
        raise ValueError(f"The control {kind} copies a token count, and the matched row has no answered video.")
    average = sum(counts.values()) / len(counts)
    if kind == "uniform_frames":
        return UniformFrames(trained, average)
    if kind == "random_tokens_mean":
        return RandomTokens(trained, lambda video: round(average), seed)

    def count(video: VideoFeatures) -> int:
        name = name_of(fingerprint(video.encoder))
        if name not in counts:
            raise ValueError(f"The matched row has no token count for the video {name!r}; it failed there.")
        return counts[name]

    return RandomTokens(trained, count, seed)
