"""PyramidDrop: at several depths, the video rows that the last row attends to least stop.

Source: PyramidDrop (arXiv 2410.17247), section 3, and its released code, which was run beside ours.
"""

from itertools import pairwise

from langdc.interfaces import Rows
from langdc.layercompressors.base import BudgetedLayers, best_of_video, going_on, layercompressors, part_of


@layercompressors.register("pyramiddrop")
class PyramidDrop(BudgetedLayers):
    """At several depths, keep the rows of the video with the most attention of the last row.

    That is what the last row would pay in the layer that follows, averaged over heads; `at`: the fractions of the
    depth. Every stage keeps the same fraction of the rows before it, as the budget allows. The release keeps half of
    the rows at each stage, a mean of 0.469. It numbers positions anew at every stage; here rows keep theirs, since a
    new number has no meaning on three axes.
    """

    paper = "arXiv 2410.17247"
    needs = frozenset({"last", "next"})

    def __init__(
        self, keep: float | None = None, tokens: int | None = None, at: tuple[float, ...] = (0.25, 0.5, 0.75)
    ) -> None:
        super().__init__(keep, tokens)
        if not at or at[0] <= 0 or at[-1] >= 1 or any(one >= other for one, other in pairwise(at)):
            raise ValueError(f"at={list(at)}: give ascending fractions of the depth between 0 and 1.")
        self.at = tuple(at)

    def first(self, layers: int) -> list[int]:
        return sorted({part_of(layers, part, 1) for part in self.at})

    def begin(self, rows: Rows) -> list[int]:
        self.left = dict(zip((layer - 1 for layer in self.first(rows.layers)), self.counts(rows), strict=False))
        return list(self.left)

    def keep(self, layer: int, rows: Rows) -> Rows:
        assert rows.attention is not None
        return going_on(rows, best_of_video(rows, rows.attention[0, rows.video], self.left[layer]))
