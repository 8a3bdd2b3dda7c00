"""Start the map from a frozen captioner's states to tokens on words that the language model knows.

Ours; the paper says nothing about the start. From random weights, replies teach the map little as long as the language
model understands no token. Where captioner and language model have the same vocabulary, as Qwen2.5-0.5B and 3B do, the
best linear map from caption states to the language model's embeddings of those words is known in closed form.
Letters: Z state width, D backbone width, S segments, n words.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langdc.interfaces import Objective
from langdc.language_models import ids_of
from langdc.log import track
from langdc.train.objectives import objectives
from langdc.types import Context, VideoBatch

RIDGE = 1e-6  # of the mean square state: keeps the equations solvable where states vary in fewer directions than Z


@objectives.register("align")
class Align(Objective):
    """Solve for a linear map from states to the embeddings of the words they stand for; no steps are made.

    For compressors with an attribute `alignable`: (linear map, segment markers [S,D] or None, tokenizer of the words),
    with a frozen part whose states begin with one row [Z] per token of the target `captions`. `segment_text`: what the
    language model would read before segment {number}, "[{number}]" in the sample; the markers become its embeddings.
    """

    def __init__(self, segment_text: str = "") -> None:
        self.segment_text = segment_text

    def samples(self, records: Sequence[Any]) -> list[Any]:
        return [r for r in records if r.segments and r.shown]

    def losses(self, model: Any, batch: VideoBatch, context: Context) -> dict[str, tuple[Tensor, int]]:
        raise ValueError("The objective align is solved in closed form; it has no loss for gradient descent.")

    def prepare(self, model: Any, data: Any, directory: Path) -> None:
        """ValueError for a compressor, settings or records that cannot be aligned."""
        if not hasattr(model.compressor, "alignable"):
            raise ValueError(f"{type(model.compressor).__name__} has no states that align could map to words.")
        projector, markers, tokenizer = model.compressor.alignable
        if not isinstance(projector, nn.Linear):
            raise ValueError("align solves for a linear map; set post_projector: linear, or leave it out.")
        if tokenizer.get_vocab() != model.backbone.tokenizer.get_vocab():
            raise ValueError(
                "align maps the compressor's tokens to the language model's words, but its tokenizer has other ones. "
                "Leave this run out, or use a captioner of the same family."
            )
        if "captions" not in data.target_names or data.states is None:
            raise ValueError(
                "align needs the states of the records' captions: set train.targets: records, freeze what makes the "
                "states, and keep features (features=DIR or a larger feature_memory)."
            )
        found, wanted = len(self._segment_ids(model, 1)), int(markers is not None)
        if found != wanted:
            raise ValueError(
                f"align: segment_text {self.segment_text!r} is {found} token(s) to the language model; this model puts "
                f"{wanted} before a segment."
            )

    @torch.no_grad()
    def solve(self, model: Any, data: Any) -> tuple[float, float]:
        """Set the map and the markers; the loss is the squared error left, relative to the embeddings'."""
        projector, markers, _ = model.compressor.alignable
        inner, outer = projector.in_features + 1, projector.out_features
        gram, cross = torch.zeros(inner, inner).double(), torch.zeros(inner, outer).double()
        size, words = 0.0, 0
        step = data.config.train.batch_size
        for first in track(starts := range(0, len(data), step), len(starts), "Aligning"):
            targets = data.collate(data.samples[first : first + step])["batch"].targets
            states, ids = (torch.cat([*chain(*targets[name])]) for name in ("states", "captions"))
            states = states[:, : inner - 1].double().cpu()
            states = nn.functional.pad(states, (0, 1), value=1.0)  # the last column is for the bias
            wanted = self._embed(model, ids).double().cpu()
            gram += states.T @ states
            cross += states.T @ wanted
            size, words = size + float(wanted.square().sum()), words + len(states)
        found = torch.linalg.solve(gram + RIDGE * gram.trace() / inner * torch.eye(inner).double(), cross)
        error = size - float(2 * (found * cross).sum() - (found * (gram @ found)).sum())
        projector.weight.copy_(found[:-1].T)
        if projector.bias is not None:
            projector.bias.copy_(found[-1])
        if markers is not None:
            known = [ids[0] for n in range(1, len(markers) + 1) if len(ids := self._segment_ids(model, n)) == 1]
            markers[: len(known)] = self._embed(model, torch.stack(known))
        return error / size, 2.0 * words * inner * (inner + outer)

    def _segment_ids(self, model: Any, number: int) -> Tensor:
        return ids_of(model.backbone.tokenizer, self.segment_text.replace("{number}", str(number)), laid_out=True)

    @staticmethod
    def _embed(model: Any, ids: Tensor) -> Tensor:
        return model.backbone.language_model.get_input_embeddings()(ids.to(model.device))
