"""How a chunk's keys are scored. Letters: h query heads, G key heads, n keys scored, Q queries, E head width."""

from abc import ABC, abstractmethod

from torch import Tensor

from langdc.attention import received_attention
from langdc.registry import Registry

scorers: Registry["Scorer"] = Registry("scorer")
_ALL = 1 << 30


class Scorer(ABC):
    """Scores the keys of a chunk; `question_window`: how many tokens of the question it needs behind the chunk."""

    question_window: int = 0

    @abstractmethod
    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        """Scores of the keys [1,G,n,E] for the queries [1,h,Q,E], per key head: [G,n]."""


@scorers.register("self")
class _SelfScorer(Scorer):
    """Attention received from all tokens of the chunk (ReTaKe, eq. 6)."""

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return received_attention(query, key)


@scorers.register("window")
class WindowScorer(Scorer):
    """Causal attention received from the last `size` tokens of the chunk (SnapKV)."""

    def __init__(self, size: int = 32) -> None:
        if size < 1:
            raise ValueError(f"A window of {size} tokens sees nothing; give 1 or more, 32 is usual.")
        self.size = size

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return received_attention(query[:, :, -self.size :], key, causal=True)


@scorers.register("question")
class _QuestionScorer(Scorer):
    """Attention received from the question's tokens (AdaReTaKe, eq. 10), the last `max_tokens` of them (152 upstream
    for LongVideoBench). `relevant`: only those that the chunk attends to above average, as SparseVLM's raters.
    """

    def __init__(self, max_tokens: int | None = None, relevant: bool = False) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(
                f"max_tokens={max_tokens} leaves no question to score with; give 1 or more, or None for all."
            )
        self.question_window = _ALL if max_tokens is None else max_tokens
        self.relevant = relevant

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        if self.relevant:
            every_head = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            attention = received_attention(every_head, query).mean(0)
            return received_attention(query, key, asking=attention > attention.mean())
        return received_attention(query, key)
