"""CDPruner: of each frame, the tokens that differ most from each other, weighed by how well they fit the question.

Letters: T frames, P = H*W places of a frame, D width, B frames at once, K tokens kept of a frame.
Source: CDPruner (arXiv 2506.10967), section 3, and its released code.
"""

import torch
from torch import Tensor

from langdc.compressors.base import Budget, GridCompressor, Variant, compressors, frames_at_once, joined, spread_evenly
from langdc.devices import at_once
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens

NEW = 1e-4
"""The least part of a token's squared length outside the span of the kept ones with which it counts as new."""
SMALLEST = 1e-6  # relevance, released code


@compressors.register("cdpruner")
class CDPruner(GridCompressor):
    """Greedily maximise a determinantal point process in every frame, each of which keeps the same number of tokens.

    The kernel is r_i cos(i, j) r_j of the projected tokens. The relevance r is the mean cosine of a token with the
    words of the question, from 0 for the video's lowest to 1 for its highest. The release is for images of LLaVA with
    CLIP alone, and takes r from the embeddings of CLIP's two towers. Other encoders have no text tower, so here the
    projected tokens are compared with the question's input embeddings on every backbone.
    `variant`: "released" turns the sign of r, as the release does with CLIP's, whose patches are least like the words
    that name them; "fixed", the default, does not, as the paper has it. Once every token left is in the span of
    those kept, the release gets numbers that are not finite and keeps fewer than asked; both variants then keep the
    most relevant of the rest.
    """

    needs = frozenset({"projected", "question"})
    variants = Variant
    paper = "arXiv 2506.10967"

    def one(self, video: VideoFeatures) -> VideoTokens:
        if video.question is None or not len(video.question):
            raise ValueError("cdpruner needs the question asked about each video; a video has none, or an empty one.")
        asked = _units(video.question).mean(0)
        pairs = zip(video.projected, self.budgets(video), strict=True)
        return joined([self._kept(grid, budget, asked) for grid, budget in pairs], video)

    def _kept(self, grid: FeatureGrid, budget: Budget, asked: Tensor) -> VideoTokens:
        """The tokens of a grid; `asked` [D]: the mean of the question's words, each of length 1."""
        if budget.covers(grid.tokens):
            return self.whole(grid)
        values = grid.values.detach().flatten(1, 2)
        frames, places = values.shape[:2]
        relevance = torch.cat([_units(some) @ asked for some in values.split(frames_at_once(values))])
        if self.variant == "released":
            relevance = -relevance
        low, high = relevance.aminmax()
        weight = ((relevance - low + SMALLEST) / (high - low + SMALLEST)).square()
        counts = spread_evenly(budget.of(grid.tokens), frames, places, torch.device("cpu"))
        step = at_once(4 * places * (places + int(counts.max())), values.device)
        parts = zip(values.split(step), weight.split(step), counts.split(step), strict=True)
        return self.taken(grid, torch.cat([most_different(*part) for part in parts]).flatten().nonzero()[:, 0])


def _units(values: Tensor) -> Tensor:
    """Tokens [...,D] of length 1, in float32."""
    return torch.nn.functional.normalize(values.detach().float(), dim=-1)


@torch.no_grad()
def most_different(values: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Which tokens of frames [B,P,D] are kept, as a mask [B,P]: one by one, the token of the largest `weight` [B,P]
    times the squared sine of its angle to the span of those kept (a Cholesky decomposition of the cosines, row by row).
    `counts` [B], on the CPU: how many of each frame. When no token is new, the largest weight; of equals the earlier.
    """
    alike = torch.cat([units @ units.mT for units in map(_units, values.split(frames_at_once(values)))])
    most, frame = int(counts.max()), torch.arange(len(alike), device=alike.device)
    left, weight = alike.diagonal(dim1=1, dim2=2).clone(), weight.clone()
    rows = alike.new_empty(len(alike), most, alike.shape[1])
    chosen = torch.empty(len(alike), most, dtype=torch.long, device=alike.device)
    for step in range(most):
        best = torch.where(left > NEW, left * weight, weight - 2).argmax(1, keepdim=True)
        before = rows[:, :step].gather(2, best[:, None].expand(-1, step, 1))
        row = alike[frame, best[:, 0]] - (before.mT @ rows[:, :step])[:, 0]
        own = left.gather(1, best)
        rows[:, step] = torch.where(own > NEW, row / own.clamp(min=NEW).sqrt(), 0.0)
        left -= rows[:, step].square()
        weight.scatter_(1, best, -torch.inf)
        chosen[:, step] = best[:, 0]
    among = (torch.arange(most) < counts[:, None]).to(alike.device, non_blocking=True)
    return torch.zeros_like(alike[:, 0], dtype=torch.bool).scatter_(1, chosen, among)
