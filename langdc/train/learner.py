"""What the Trainer trains: a batch in, one loss out; every named loss is normalised over the whole step.

A step's batch is divided into micro-batches, over accumulation and processes. The sum of each loss is divided by its
count in the whole step, which the batches announce, so that the division does not depend on how it was divided.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from langdc.distributed import world_size
from langdc.flops import encoder_flops, language_model_flops, work_flops
from langdc.interfaces import Objective
from langdc.log import get_logger
from langdc.model import VideoModel, hidden, is_absent
from langdc.types import Compressed, Context, VideoBatch, VideoFeatures

logger = get_logger(__name__)


class Learner(nn.Module):
    """Weighs an objective's losses. Of the last batch: `parts`, each loss's sum and count, `flops` and `figures`.

    `figures` as in `Meter`. ValueError for weights of losses that do not exist, and an objective without any loss.
    """

    def __init__(
        self, model: VideoModel, objective: Objective, weights: Mapping[str, float] | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.model, self.objective, self.weights, self.seed = model, objective, dict(weights or {}), seed
        self.wanted = objective.wanted(model.compressor, self.weights)
        self.names = sorted(objective.names | (self.wanted - {"tokens"}))
        """Names of the losses, the same on all processes."""
        self._check()
        self.step, self.progress, self.flops = 0, 0.0, 0.0
        self.parts: dict[str, tuple[Tensor, int]] = {}
        self.figures: dict[str, Any] = {}
        self._uneven: set[str] = set()

    def _check(self) -> None:
        known = self.objective.names | self.model.compressor.losses
        if unknown := sorted(self.weights.keys() - known):
            raise ValueError(
                f"loss_weights: there is no loss {', '.join(unknown)}. There is: {', '.join(sorted(known)) or 'none'}."
            )
        if not self.names:
            raise ValueError(
                f"The objective {type(self.objective).__name__} has no loss of its own, and "
                f"{type(self.model.compressor).__name__} has none that is weighed. Choose the objective answer, or a "
                "compressor with losses."
            )

    def engine_parts(self) -> AbstractContextManager[None]:
        """Leave encoders that are all frozen, and a language model that is absent, out of the module tree for a while.

        Then an engine (DDP, DeepSpeed) neither partitions nor gathers them, and ranks may call them as they need.
        """
        encoders = self.model.backbone.encoders
        frozen = set() if _is_trained(encoders) else {id(part) for part in (encoders, *encoders.values())}
        return hidden(self.model, lambda part: id(part) in frozen or is_absent(part))

    def begin_step(self, step: int, steps: int) -> None:
        """Choose the step's random numbers and progress."""
        self.step, self.progress = step, min(step / max(steps, 1), 1.0)

    def context(self) -> Context:
        """The context of a batch of this step: every micro-batch draws the same random numbers."""
        digest = sha256(f"{self.seed} {self.step}".encode()).digest()  # torch uses 32 bits of a seed
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4]))
        return Context(self.training, self.progress, generator, wanted=self.wanted, synced=world_size() > 1)

    def forward(
        self,
        batch: VideoBatch,
        counts: Mapping[str, int] | None = None,
        num_items_in_batch: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """{"loss"}: the weighted sum of the losses, each divided by its count in the whole step.

        `counts`: of this batch, as announced by `TrainingData`; `num_items_in_batch`: of the whole step, with its
        number of "batches"; default: the step is this batch alone.
        """
        compressor = self.model.compressor
        self.flops = 0.0
        self.figures = {"samples": len(batch.prompts) or (0 if batch.blank else len(batch.seconds))}
        with (
            self.model.register_forward_hook(lambda _, given, output: self._note_output(given[0], output)),
            compressor.register_forward_hook(lambda _, given, output: self._note_compressed(batch, given[0], output)),
        ):
            losses = self.objective.losses(self.model, batch, replace(self.context(), targets=batch.targets))
        if undeclared := sorted(losses.keys() - {*self.names, *compressor.losses}):
            raise ValueError(
                f"The losses {', '.join(undeclared)} were returned and not declared: name them in `losses` of the "
                "compressor or `names` of the objective, so that all processes count the same ones."
            )
        if lost := [name for name in self.names if (counts or {}).get(name) and name not in losses]:
            raise ValueError(
                f"{', '.join(lost)}: losses that are declared and were not returned. Return each one that "
                "`context.wanted` names, or count nothing for it in `loss_counts`."
            )
        if counts is not None and not counts:  # padding
            self.flops, self.figures = 0.0, {"samples": 0}
        self.parts, total = {}, torch.zeros((), device=self.model.device)
        for name, (summed, count) in losses.items():
            if name not in self.names:  # its weight is 0
                continue
            if batch.blank and name not in self.objective.names:
                total = total + summed * 0.0
                continue
            self.parts[name] = summed.detach(), count
            divisor = self._divisor(name, count, counts or {}, num_items_in_batch)
            total = total + self.weights.get(name, 1.0) * summed / divisor
        return {"loss": total}

    def _divisor(
        self, name: str, count: int, counts: Mapping[str, int], in_step: Mapping[str, Tensor] | None
    ) -> Tensor | int:
        """The count of a loss in the whole step; where it is not as announced, means of micro-batches are averaged."""
        if in_step is None:
            return max(count, 1)
        if counts.get(name, 0) == count:
            return in_step[name]
        if name not in self._uneven:
            self._uneven.add(name)
            logger.warning(
                "%s returned the loss %s over %d items where %d were announced, so it is a mean over the means of "
                "micro-batches. Override loss_counts to have the mean over the whole step.",
                type(self.model.compressor).__name__,
                name,
                count,
                counts.get(name, 0),
            )
        return max(count, 1) * in_step["batches"]

    # ---- for the log

    def _note_output(self, batch: VideoBatch, output: Any) -> None:
        """What the language model read, from a `ModelOutput`; a teacher's pass, which has no gradients, counts once."""
        backbone, tokens = self.model.backbone, output.compressed.tokens
        config = backbone.language_model.config.get_text_config()
        lengths = [
            len(prompt.ids) + sum(len(tokens[number]) for number in shown)
            for prompt, shown in zip(batch.prompts, batch.shows, strict=True)
        ]
        learned = len(output.logits) if output.logits is not None else 0
        forward = sum(language_model_flops(config, length, predictions=0) for length in lengths)
        forward += language_model_flops(config, 0, predictions=learned)
        if torch.is_grad_enabled():
            self.flops += forward * _passes(backbone.text_model)
            self._note_lengths(lengths, output.inputs.embeds.shape[:2].numel())
        else:
            self.flops += forward

    def _note_compressed(self, batch: VideoBatch, videos: list[VideoFeatures], compressed: Any) -> None:
        """What encoders and language models inside the compressor did, and how many tokens stand for a segment."""
        if not isinstance(compressed, Compressed):
            return  # the model refuses it
        if batch.frames:
            encoders = self.model.backbone.encoders
            encoding = sum(encoder_flops(self.model.backbone, video.encoder) for video in videos)
            self.flops += encoding * (3 if _is_trained(encoders) else 1)
        work = [use for per_video in compressed.work or () for use in per_video]
        passes = _passes(self.model.compressor) if compressed.losses else 1
        self.flops += passes * work_flops(work)
        lengths = [use.read + use.written for use in work]
        self._note_lengths(lengths, len(lengths) * max(lengths, default=0))
        if written := [len(ids) for per_video in compressed.ids or () for ids in per_video]:
            self.figures["soft_tokens"], self.figures["segments"] = sum(written), len(written)
        elif filled := [video for video in compressed.tokens if len(video)]:
            self.figures["soft_tokens"] = sum(map(len, filled))
            # stays on the device until a line of the log
            self.figures["segments"] = torch.stack([video.segment.amax() + 1 for video in filled]).sum()

    def _note_lengths(self, lengths: list[int], size: int) -> None:
        """Of what a language model reads as one batch with `size` places."""
        self.figures["tokens"], self.figures["padding"] = sum(lengths), size - sum(lengths)


def _passes(module: nn.Module) -> int:
    """How often products are computed: forward, backward to inputs and, where a module is trained, to weights."""
    return 3 if _is_trained(module) else 2


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
