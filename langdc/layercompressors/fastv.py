"""FastV: after an early layer, only the video rows that the last row attends to go on.

Letters: m video rows. Source: FastV (arXiv 2403.06764), section 4, and its released code for key-value caches,
which was run beside ours.
"""

from langdc.interfaces import Rows
from langdc.layercompressors.base import OneLayer, best_of_video, going_on, layercompressors


@layercompressors.register("fastv")
class FastV(OneLayer):
    """Before layer `layer` keep the rows of the video with the most attention of the last row.

    That is what the last row paid in the layer before, averaged over heads. `layer`: K of the paper, by default 2 of
    32. The paper's R is the fraction dropped at that layer; `keep` is a mean over all layers. The release averages
    over heads in the model's type, where equals are common; here it is in float32, and of equals the earlier wins.
    FlashVID drops rows inside the language model by the same rule: see `flashvid`.
    """

    paper = "arXiv 2403.06764"
    needs = frozenset({"last"})

    def keep(self, layer: int, rows: Rows) -> Rows:
        assert rows.attention is not None
        return going_on(rows, best_of_video(rows, rows.attention[0, rows.video], self.left[0]))
