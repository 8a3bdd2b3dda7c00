"""What listens while a reply is written: when its first token comes, and whether its scores are numbers at all."""

import time
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from langdc.types import FeatureGrid, VideoTokens


class FirstToken(BaseStreamer):
    """Notes when generation delivers its first new token."""

    def __init__(self) -> None:
        self.at: float | None = None
        self._calls = 0

    def put(self, value: Tensor) -> None:
        self._calls += 1
        if self._calls == 2:  # the first call hands over the prompt
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


class ScoreWatch(LogitsProcessor):
    """Looks at the scores of every next token and changes none, since a word can be made even of NaN.

    Nothing is waited for until `refuse_nan` is called.
    """

    def __init__(self) -> None:
        self._broken: Tensor | None = None

    def beside(self, others: Iterable[LogitsProcessor] | None) -> LogitsProcessorList:
        """This and the processors that were asked for, after which it looks."""
        return LogitsProcessorList([*(others or ()), self])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # the largest is NaN if any is, and -inf if every token is forbidden; a single -inf is a forbidden token
        broken = ~scores.amax(-1).isfinite().all()
        self._broken = broken if self._broken is None else self._broken | broken
        return scores

    def refuse_nan(self, tokens: Iterable[VideoTokens]) -> None:
        """ValueError if a token could not be chosen, which says whether the videos' `tokens` were broken already."""
        if self._broken is None or not self._broken:
            return
        if all(of_video.values.isfinite().all() for of_video in tokens):
            where = "the video tokens are finite, so it is the language model. Load it in float32 or bfloat16"
        else:
            where = "the video tokens hold NaN or infinity already. Look at the compressor and the projectors"
        raise ValueError(
            f"The scores of the next token are NaN or infinite: {where}, and see whether a weight is not finite."
        )


def refuse_nan(encoded: Mapping[str, FeatureGrid]) -> None:
    """ValueError if what an encoder saw of a video is not finite; no compressor may drop that silently."""
    if not encoded:
        return
    # the extremes tell as much as all values and make no copy of them; one wait for all grids
    extremes = [[torch.stack(part.aminmax()) for part in (grid.values, *grid.extra)] for grid in encoded.values()]
    finite = torch.stack([torch.stack(of_grid).isfinite().all() for of_grid in extremes])
    if not finite.all():
        named = ", ".join(name for name, fine in zip(encoded, finite.tolist(), strict=True) if not fine)
        raise ValueError(
            f"The encoder {named} gives NaN or infinity for this video. Look at its frames, or load the encoder in "
            "float32 and see whether a weight is not finite."
        )
