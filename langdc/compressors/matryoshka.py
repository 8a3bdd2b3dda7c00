"""Matryoshka queries: a resampler whose first queries suffice, so that one trained model serves every budget.

Letters: S segments, K queries, m queries in use, N tokens.
Source: MQT-LLaVA (arXiv 2405.19315), section 3.
"""

import torch

from langdc.compressors.base import compressors, segment_length, spread_evenly
from langdc.compressors.resampler import Resampler
from langdc.types import Compressed, Context, VideoFeatures, VideoTokens


@compressors.register("matryoshka")
class Matryoshka(Resampler):
    """A resampler of `queries` per segment, of which the first m are used; the other settings are the resampler's.

    In training m is drawn for each step, every number from 1 to `queries` as likely, the same for all videos. In use
    `tokens` is how many tokens a video gets, spread evenly over its segments; all queries of each unless it is given. A
    query attends to those before it alone, so that its token does not depend on how many follow.
    """

    causal = True
    paper = "MQT-LLaVA, arXiv 2405.19315"

    def __init__(
        self,
        width: int,
        streams: dict[str, int],
        queries: int,
        tokens: int | None = None,
        depth: int = 2,
        heads: int = 4,
        max_side: int = 32,
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(width, streams, queries, depth, heads, max_side, frames_per_segment)
        if tokens is not None and tokens < 1:
            raise ValueError(f"matryoshka tokens={tokens}; a video needs at least one token.")
        self.tokens = tokens

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        if "tokens" not in context.wanted:
            return Compressed([])
        queries = self.queries()
        if context.training:
            used = int(torch.randint(1, len(queries) + 1, (), generator=context.generator))
            # the others are multiplied by zero, so that each has a gradient at every step
            return Compressed(self.resampled(videos, queries[:used] + 0 * queries[used:].sum()))
        if self.tokens is None:
            return Compressed(self.resampled(videos, queries))
        fewest = min(-(-video.grid[0] // segment_length(video, self.frames_per_segment)) for video in videos)
        used = min(len(queries), -(-self.tokens // fewest))
        return Compressed([self._first(tokens, used) for tokens in self.resampled(videos, queries[:used])])

    def _first(self, tokens: VideoTokens, used: int) -> VideoTokens:
        """The first tokens of each segment, as many of the `used` as the budget gives it."""
        counts = spread_evenly(self.tokens or 1, len(tokens) // used, used, tokens.values.device)
        order = torch.arange(used, device=counts.device)
        return tokens.take((order < counts[:, None]).flatten().nonzero()[:, 0])
