"""Who says which keys of a chunk matter: small pieces that any KV compressor combines.

Letters: h query heads, G key heads, n keys scored, Q queries, E head width.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from langdc.attention import received_attention
from langdc.registry import Registry

scorers: Registry["Scorer"] = Registry("scorer")
ALL = 1 << 30


class Scorer(ABC):
    """Scores the keys of a chunk; `guide` is how many of the question's tokens it reads behind the chunk."""

    guide: int = 0

    @abstractmethod
    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        """How much each key [1,G,n,E] matters to the queries [1,h,Q,E], per key head: [G,n]."""


@scorers.register("self")
class SelfScorer(Scorer):
    """Attention from the chunk's own tokens, all to all (ReTaKe, eq. 6)."""

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return received_attention(query, key)


@scorers.register("window")
class WindowScorer(Scorer):
    """Attention from the last `size` tokens of the chunk to those up to themselves (SnapKV)."""

    def __init__(self, size: int = 32) -> None:
        if size < 1:
            raise ValueError(f"A window of {size} tokens sees nothing; give 1 or more, 32 is usual.")
        self.size = size

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return received_attention(query[:, :, -self.size :], key, causal=True)


@scorers.register("question")
class QuestionScorer(Scorer):
    """Attention from the question's tokens (AdaReTaKe, eq. 10).

    `most`: only that many, counted from the end, 152 in upstream's LongVideoBench setting; all where None. `relevant`:
    only those that attend to the chunk more than the average one does, as SparseVLM picks its raters.
    """

    def __init__(self, most: int | None = None, relevant: bool = False) -> None:
        if most is not None and most < 1:
            raise ValueError(f"most={most} leaves no question to score with; give 1 or more, or None for all.")
        self.guide = ALL if most is None else most
        self.relevant = relevant

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        if self.relevant:
            every_head = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            attention = received_attention(every_head, query).mean(0)
            query = query[:, :, attention > attention.mean()]
        return received_attention(query, key)


def build_scorer(scorer: "str | dict | Scorer") -> Scorer:
    """A scorer from its name, from {"name": ..., settings}, or as it is."""
    if isinstance(scorer, Scorer):
        return scorer
    return scorers.build(**({"name": scorer} if isinstance(scorer, str) else scorer))
