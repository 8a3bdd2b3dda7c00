"""Learn the replies."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from langdc.interfaces import Objective
from langdc.train.objectives import objectives
from langdc.types import Context, VideoBatch


@objectives.register("answer")
class Answer(Objective):
    """Cross-entropy on the replies, given compressed videos; a mean over tokens, the end token included."""

    names = frozenset({"answer"})

    def losses(self, model: Any, batch: VideoBatch, context: Context) -> dict[str, tuple[Tensor, int]]:
        output = model(batch, context)
        loss = F.cross_entropy(output.logits.float(), output.labels, reduction="sum")
        return {**output.compressed.losses, "answer": (loss, len(output.labels))}
