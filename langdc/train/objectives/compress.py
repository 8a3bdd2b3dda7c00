"""Train a compressor by its own losses."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from langdc.interfaces import Objective
from langdc.train.objectives import objectives
from langdc.types import Context, VideoBatch


@objectives.register("compress")
class Compress(Objective):
    """The compressor's own losses alone, such as LangDC's "caption"; the language model is not called.

    Its tokens are not computed either, unless one of its losses needs them.
    """

    reads = False

    def samples(self, records: Sequence[Any]) -> list[Any]:
        return [record for record in records if record.shown]

    def losses(self, model: Any, batch: VideoBatch, context: Context) -> dict[str, tuple[Tensor, int]]:
        videos = model.features(batch, synced=context.synced)
        return dict(model.compress(videos, context).losses)
