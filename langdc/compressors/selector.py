"""A learned selector: a small network scores every token and the best stay; it learns from the model's own loss.

Letters: T frames, H W patch grid, D backbone width, n tokens of all grids of a batch.
Source: VisionSelector (arXiv 2510.16598): scorer of queries and keys, differentiable selection, annealed constraint.
"""

import torch
from torch import Tensor, nn

from langdc.compressors.base import Budget, GridCompressor, best_places, compressors, joined
from langdc.types import Compressed, Context, FeatureGrid, VideoFeatures, VideoTokens

SMALLEST = 1e-6  # of uniform draws, so that their logarithms are finite


@compressors.register("selector")
class LearnedSelector(GridCompressor):
    """Keep the tokens that score best over the whole video. `width`: the backbone's, filled in from it.

    A token's score is a linear function of it, plus the product of its key with the mean query of its grid and, with
    `question`, of the question's words; `inner` is the width of queries and keys, half of `width` unless given.
    In training the kept fraction falls from 1 to the budget over the first `anneal` of the run; scores get Gumbel noise
    of scale `noise`, which falls to 0 over the run; kept tokens pass unchanged, and their gradients reach the scores
    through the gate, the sigmoid of the score (straight-through). The loss "budget" is the squared difference between
    the mean gate and the fraction, averaged over a video's grids; by it scores of dropped tokens are learned, too.
    """

    losses = frozenset({"budget"})
    paper = "VisionSelector, arXiv 2510.16598"

    def __init__(
        self,
        width: int,
        keep: float | None = None,
        tokens: int | None = None,
        anneal: float = 0.5,
        noise: float = 1.0,
        question: bool = False,
        inner: int | None = None,
        frames_per_segment: int = 4,
    ) -> None:
        super().__init__(keep, tokens, frames_per_segment)
        inner = max(1, width // 2) if inner is None else inner
        if not 0 <= anneal <= 1 or noise < 0 or inner < 1:
            raise ValueError(
                f"selector anneal={anneal} must be in [0, 1], noise={noise} not negative and inner={inner} at least 1."
            )
        self.anneal, self.noise, self.inner = anneal, noise, inner
        self.norm = nn.LayerNorm(width)
        self.level, self.query, self.key = nn.Linear(width, 1), nn.Linear(width, inner), nn.Linear(width, inner)
        self.question = nn.Linear(width, inner) if question else None
        self.needs = frozenset({"projected", "question"} if question else {"projected"})

    def forward(self, videos: list[VideoFeatures], context: Context = Context()) -> Compressed:
        if not context.wanted & {"tokens", *self.losses}:
            return Compressed([])
        budgets = [self._annealed(video, context) for video in videos]
        scores = self._scores(videos)
        each = zip(videos, scores, budgets, strict=True)
        parts = [list(zip(video.projected, score, budget, strict=True)) for video, score, budget in each]
        losses = {}
        if "budget" in context.wanted:
            squares = [[_missed(*part) for part in of_video] for of_video in parts]
            losses["budget"] = torch.stack([torch.stack(each).mean() for each in squares]).sum(), len(squares)
        if "tokens" not in context.wanted:
            return Compressed([], losses)
        kept = [[self._kept(*part, context) for part in of_video] for of_video in parts]
        return Compressed(list(map(joined, kept, videos)), losses)

    def _annealed(self, video: VideoFeatures, context: Context) -> list[Budget]:
        """The budget of each grid at this point of the run."""
        budgets = self.budgets(video)
        if not context.training or context.progress >= self.anneal:
            return budgets
        done = context.progress / self.anneal
        shares = [budget.share(grid.tokens) for budget, grid in zip(budgets, video.projected, strict=True)]
        return [Budget(keep=1 - (1 - share) * done) for share in shares]

    def _scores(self, videos: list[VideoFeatures]) -> list[list[Tensor]]:
        """The score of each token of each grid [T*H*W] of each video, in float32; one call of each layer."""
        grids = [grid for video in videos for grid in video.projected]
        lengths = [grid.tokens for grid in grids]
        rows = self.norm(torch.cat([grid.values.flatten(0, 2) for grid in grids]))
        asking = [queries.float().mean(0) for queries in self.query(rows).split(lengths)]
        if self.question is not None:
            asked = self._questions(videos)
            owner = [number for number, video in enumerate(videos) for _ in video.projected]
            asking = [query + asked[number] for query, number in zip(asking, owner, strict=True)]
        parts = zip(self.key(rows).split(lengths), self.level(rows)[:, 0].split(lengths), asking, strict=True)
        scores = iter([level.float() + key.float() @ query / self.inner**0.5 for key, level, query in parts])
        return [[next(scores) for _ in video.projected] for video in videos]

    def _questions(self, videos: list[VideoFeatures]) -> list[Tensor]:
        """The mean query of each video's question [inner]."""
        assert self.question is not None
        words = [video.question for video in videos if video.question is not None]
        if len(words) < len(videos):
            raise ValueError("selector with question=True needs the question of every video; at least one has none.")
        asked = self.question(self.norm(torch.cat(words))).float()
        return [part.mean(0) for part in asked.split([len(part) for part in words])]

    def _kept(self, grid: FeatureGrid, score: Tensor, budget: Budget, context: Context) -> VideoTokens:
        """The best tokens of a grid; in training with the gradient of their gates."""
        ranked = score.detach()
        if context.training and self.noise:
            draw = torch.rand(len(score), generator=context.generator).clamp(SMALLEST, 1 - SMALLEST).to(score)
            ranked = ranked - self.noise * (1 - context.progress) * (-draw.log()).log()
        source = best_places(ranked, budget.of(grid.tokens))
        tokens = self.taken(grid, source)
        if not context.training:
            return tokens
        gate = score[source].sigmoid()
        return self.with_values(tokens, tokens.values * (1 + gate - gate.detach())[:, None])


def _missed(grid: FeatureGrid, score: Tensor, budget: Budget) -> Tensor:
    """The squared difference between a grid's mean gate and the fraction to keep."""
    return (score.sigmoid().mean() - budget.share(grid.tokens)).square()
