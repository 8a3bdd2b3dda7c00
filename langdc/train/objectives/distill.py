"""Make the language model say about compressed videos what it says about uncompressed ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langdc import distributed, jsonl
from langdc.backbones.chat import conversation
from langdc.compressors import compressors
from langdc.interfaces import Objective
from langdc.log import get_logger, track
from langdc.registry import check_choice
from langdc.replies import reply
from langdc.train.objectives import objectives
from langdc.types import Context, VideoBatch

logger = get_logger(__name__)

Replies = Literal["records", "model"]


@objectives.register("distill")
class Distill(Objective):
    """KL divergence of the replies' distribution given compressed tokens from that of the same model given all tokens.

    The teacher is the language model without its adapters and without dropout. `temperature` divides the logits of
    both; the loss is multiplied by its square, so that gradients keep their size (arXiv 1503.02531). `replies`: those
    of the "records", or those that the uncompressed "model" writes, at most `max_new_tokens` each, once before the
    first step.
    """

    names = frozenset({"distill"})
    whole = True

    def __init__(self, temperature: float = 1.0, replies: Replies = "records", max_new_tokens: int = 64) -> None:
        if temperature <= 0:
            raise ValueError(f"distill temperature is {temperature}; give a number above 0.")
        check_choice("distill replies", replies, Replies)
        self.temperature, self.replies, self.max_new_tokens = temperature, replies, max_new_tokens
        self.own_replies = replies == "model"
        # whole prompts have a slot for every step T of a grid, where they have several
        self.teacher = compressors.build("identity", frames_per_segment=1)

    def prepare(self, model: Any, data: Any, directory: Path) -> None:
        """Refuse a language model whose own weights are trained: it could not be its own teacher."""
        weights = chain(*(part.named_parameters() for part in (model.backbone.text_model, model.backbone.lm_head)))
        name = next((name for name, weight in weights if weight.requires_grad and ".lora_" not in name), None)
        if name is not None:
            raise ValueError(
                f"distill compares with the language model as it was before training, and {name} is trained. Train the "
                "compressor, the projectors or adapters (train.lora), whose effect the teacher leaves out."
            )
        if self.replies == "model":
            data.replies = self._replies(model, data, directory)

    def _replies(self, model: Any, data: Any, directory: Path) -> dict[tuple[str, str], str]:
        """What the uncompressed model replies, by record id and text asked; kept in the run's folder.

        Processes share the questions, each with a file of its own.
        """
        seen: dict[str, Any] = {}
        if twice := [s.record.id for s in data.samples if seen.setdefault(s.record.id, s.specs) != s.specs]:
            raise ValueError(f"distill: two videos of train.data have the id {twice[0]!r}; give each an id of its own.")
        if talks := [s.where for s in data.samples if s.record.messages]:
            raise ValueError(f"{talks[0]} is a conversation; replies: model is for questions. Set replies: records.")
        known = _known_replies(directory)
        pairs = [(sample, question.prompt()) for sample in data.samples for question in sample.record.questions]
        asked = [(sample, text) for sample, text in pairs if (sample.record.id, text) not in known]
        logger.info("distill: the uncompressed model writes %d replies.", len(asked))
        own = asked[distributed.rank() :: distributed.world_size()]
        for sample, text in track(own, len(own), "Writing replies"):
            try:
                reply = self._reply(model, data.collate([sample])["batch"], len(sample.specs), text)
            except ValueError as error:
                raise ValueError(f"{sample.where}: {error}") from None
            line = {"id": sample.record.id, "question": text, "reply": reply}
            jsonl.append(directory / f"replies-{distributed.rank()}.jsonl", line)
        distributed.barrier()
        return _known_replies(directory)

    @torch.no_grad()
    def _reply(self, model: Any, batch: VideoBatch, shown: int, question: str) -> str:
        backbone = model.backbone
        with _without_adapters(backbone.text_model):
            videos = model.features(batch, frozenset({"projected"})) if shown else []
            tokens = model.compress(videos, Context(), self.teacher).tokens
            prompt = backbone.prompt(conversation(question, videos=shown), media=videos)
            options = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
            frames = [len(video.seconds) for video in videos]
            return reply(backbone, [prompt], [tokens], [frames], None, options)[0].text

    def losses(self, model: Any, batch: VideoBatch, context: Context) -> dict[str, tuple[Tensor, int]]:
        videos = model.features(batch, model.compressor.needs | {"projected"}, context.synced)
        whole = replace(batch, prompts=batch.whole or batch.prompts)
        with torch.no_grad(), _without_adapters(model.backbone.text_model):
            wanted = self._log_probabilities(model(whole, Context(), self.teacher, videos))
        output = model(batch, context, videos=videos)
        given = self._log_probabilities(output)
        loss = F.kl_div(given, wanted, reduction="sum", log_target=True) * self.temperature**2
        return {**output.compressed.losses, "distill": (loss, len(given))}

    def _log_probabilities(self, output: Any) -> Tensor:
        """Of the words at the n positions to learn: [n,V]."""
        return F.log_softmax(output.logits.float() / self.temperature, -1)


def _known_replies(directory: Path) -> dict[tuple[str, str], str]:
    lines = [line for path in sorted(directory.glob("replies-*.jsonl")) for line in jsonl.read(path)]
    return {(line["id"], line["question"]): line["reply"] for line in lines}


@contextmanager
def _without_adapters(module: nn.Module) -> Iterator[None]:
    """A model as published for a while: without its adapters and dropout.

    PEFT's own switch would also freeze the adapters.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [part for part in module.modules() if isinstance(part, LoraLayer)]
    training = module.training
    for layer in layers:
        layer._disable_adapters = True
    module.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
        module.train(training)
