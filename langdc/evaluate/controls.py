"""Controls: what a learned compressor must beat at its own number of tokens.

Most keep or average tokens of a trained pool, as many as another entry used; one gives the decoded captions as words.
Letters: T frames, H W patch grid, D backbone width, N tokens kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from langdc.compressors import compressors
from langdc.evaluate.models import OwnCompressor
from langdc.hashing import tensors_hash
from langdc.interfaces import Backbone, TokenCompressor
from langdc.language_models import ids_of
from langdc.types import Compressed, Context, FeatureGrid, VideoFeatures, VideoTokens


def fingerprint(encoded: Mapping[str, FeatureGrid]) -> str:
    """The sha256 of a video's encoder outputs: tells videos apart where only features are at hand."""
    return tensors_hash({name: grid.values for name, grid in encoded.items()})


class _Wrapper(TokenCompressor):
    """A compressor that reads what a `trained` one makes of the same videos."""

    def __init__(self, trained: TokenCompressor) -> None:
        super().__init__()
        self.trained: Any = trained
        self.needs = trained.needs
        self.frames_per_segment = trained.frames_per_segment


class _PoolSubset(_Wrapper):
    """The tokens of a trained pool that `choose` keeps: it gives their indices [N], ascending, of a video's tokens."""

    def __init__(self, trained: TokenCompressor, choose: Callable[[VideoFeatures, int], Tensor]) -> None:
        super().__init__(trained)
        self.choose = choose

    def one(self, video: VideoFeatures) -> VideoTokens:
        tokens = self.trained([video]).tokens[0]
        return tokens.take(self.choose(video, len(tokens)).to(tokens.values.device))


def _random_tokens(video: VideoFeatures, tokens: int, count: int, seed: int) -> Tensor:
    """Draw `count` of the tokens, or all if there are fewer, without replacement, by seed and video."""
    generator = torch.Generator().manual_seed((int(fingerprint(video.encoder)[:15], 16) + seed) % 2**63)
    return torch.randperm(tokens, generator=generator)[:count].sort().values


def _uniform_frames(shapes: Sequence[tuple[int, int, int]], tokens: int, max_tokens: float) -> Tensor:
    """All tokens of evenly spaced frames: as many frames as fit into `max_tokens`, but at least one.

    `shapes`: T, H and W of each stream; streams follow each other, each frame by frame.
    """
    frames = shapes[0][0]
    kept = max(1, min(frames, int(max_tokens * frames / tokens)))
    middles = ((2 * torch.arange(kept) + 1) * frames) // (2 * kept)  # of equal parts
    frame = torch.cat([torch.arange(steps).repeat_interleave(height * width) for steps, height, width in shapes])
    return torch.isin(frame, middles).nonzero().squeeze(1)


class _CaptionText(_Wrapper):
    """A compressor's captions as words, embedded by the language model, for its tokens: "[1] red ball [2] ..."."""

    def __init__(self, trained: TokenCompressor, backbone: Backbone) -> None:
        super().__init__(trained)
        if not OwnCompressor.writes_text(trained):
            raise ValueError(f"caption_text needs a model that writes captions; this one has {type(trained).__name__}.")
        self.embedding = backbone.language_model.get_input_embeddings()
        self.tokenizer = backbone.tokenizer

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        found = self.trained(videos, context)
        return replace(found, tokens=[self._words(per_video) for per_video in found.ids])

    def text(self, ids: Tensor) -> str:
        return self.trained.text(ids)

    def _words(self, captions: list[Tensor]) -> VideoTokens:
        texts = [f"{' ' * (n > 1)}[{n}] {self.text(ids)}".rstrip() for n, ids in enumerate(captions, 1)]
        ids = [ids_of(self.tokenizer, text) for text in texts]
        segment = torch.arange(len(ids)).repeat_interleave(torch.tensor(list(map(len, ids))))
        device = next(self.embedding.parameters()).device
        return VideoTokens(self.embedding(torch.cat(ids).to(device)), segment.to(device))


UNIFORM = {"lower_resolution": "resolution", "stride": "stride", "average_pooling": "pool"}
"""Controls that are the compressor `uniform` on a trained pool, and its `by`."""


def build(
    kind: str,
    trained: Any,
    backbone: Backbone,
    counts: Mapping[str, int],
    name_of: Callable[[str], str],
    seed: int = 0,
) -> TokenCompressor:
    """Put a control on a trained model. `counts`: tokens by video to copy; `name_of`: video by fingerprint.

    ValueError for a model that the control does not fit, or if the matched entry has no answered video.
    """
    if kind == "caption_text":
        return _CaptionText(trained, backbone)
    if not hasattr(trained, "grids"):
        raise ValueError(
            f"This control keeps tokens of a pool; the entry's model has the compressor {type(trained).__name__}. "
            "Give the directory of a model trained with 'pool'."
        )
    if not counts:
        raise ValueError(f"The control {kind} copies a token count, and the matched entry has no answered video.")
    average = sum(counts.values()) / len(counts)
    if kind in UNIFORM:
        settings = {"by": UNIFORM[kind], "frames_per_segment": trained.frames_per_segment}
        return compressors.build("uniform", tokens=max(1, round(average)), **settings)

    def choose(video: VideoFeatures, tokens: int) -> Tensor:
        if kind == "uniform_frames":
            return _uniform_frames([grid.shape[:3] for grid in trained.grids(video)], tokens, average)
        if kind == "random_tokens_mean":
            return _random_tokens(video, tokens, round(average), seed)
        name = name_of(fingerprint(video.encoder))
        if name not in counts:
            raise ValueError(f"The matched entry has no token count for the video {name!r}; it failed there.")
        return _random_tokens(video, tokens, counts[name], seed)

    return _PoolSubset(trained, choose)
