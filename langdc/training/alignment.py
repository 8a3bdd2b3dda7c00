"""Where the post-projector starts: on words the language model knows.

Ours; the paper is silent about the start. From random weights, replies teach the post-projector little as long as the
language model understands no token. Where captioner and language model read the same words, as Qwen2.5-0.5B and 3B do,
the best linear map from caption states to the language model's embeddings of those words is known in closed form.
Letters: Z captioner width, D backbone width, n words.
"""

import time

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from langdc.backbones.chat import IGNORED
from langdc.data.records import Record
from langdc.language_models import ids_of
from langdc.model import VideoModel
from langdc.training.answers import CaptionStates
from langdc.training.objectives import Objective
from langdc.training.phases import Outcome
from langdc.training.samples import Sample, check_segments

RIDGE = 1e-6  # of the mean square state: keeps the equations solvable where states vary in fewer directions than Z


class Alignment(Objective):
    """Captions as states and words. It is solved, not trained: one pass over the records, no steps.

    Needs a linear post-projector and captions in the records. `segment_text` of the phase says what the language model
    would read before a segment, "[{number}]" in the sample; the segment markers become the embeddings of that.
    """

    can_be_online = False

    def __init__(self, model: VideoModel, *args, **settings) -> None:
        self.compressor = model.captioner
        super().__init__(model, *args, **settings)
        self.states = CaptionStates(self)

    def wants(self, record: Record) -> bool:
        return bool(record.segments) and (record.video is not None or record.image is not None)

    def check_samples(self) -> None:
        name, compressor, backbone = self.phase.name, self.compressor, self.model.backbone
        if self.phase.captions != "file":
            raise ValueError(f"Phase {name!r} aligns with the words of the file's captions; set captions: file.")
        if not isinstance(compressor.post_projector, nn.Linear):
            raise ValueError(f"Phase {name!r} solves for a linear map; set post_projector: linear, or leave it out.")
        if compressor.captioner.tokenizer.get_vocab() != backbone.tokenizer.get_vocab():
            raise ValueError(
                f"Phase {name!r} aligns caption tokens with the language model's words, but the captioner's tokenizer "
                "has other ones. Leave the phase out, or use a captioner of the same family."
            )
        marked, wanted = len(self._marker(1)), int(compressor.segment_marker is not None)
        if marked != wanted:
            raise ValueError(
                f"Phase {name!r}: segment_text {self.phase.segment_text!r} is {marked} token(s) to the language model; "
                f"this model puts {wanted} before a segment."
            )
        check_segments(self.samples, self.phase.data)

    def _marker(self, number: int) -> Tensor:
        text = (self.phase.segment_text or "").replace("{number}", str(number))
        return ids_of(self.model.backbone.tokenizer, text)

    def collate(self, samples: list[Sample]) -> dict:
        encode = self.compressor.captioner.encode
        words = [encode(segment.caption) for sample in samples for segment in sample.record.segments]
        labels = pad_sequence(words, batch_first=True, padding_value=IGNORED)
        return {"states": torch.cat([part for s in samples for part in self.states[s.index]]), "labels": labels}

    @torch.no_grad()
    def solve(self) -> Outcome:
        """Set the post-projector and the markers; the loss is the squared error left, relative to the embeddings'."""
        started = time.monotonic()
        projector, markers = self.compressor.post_projector, self.compressor.segment_marker
        assert isinstance(projector, nn.Linear)  # as checked
        inner, outer = projector.in_features + 1, projector.out_features
        gram, cross = torch.zeros(inner, inner).double(), torch.zeros(inner, outer).double()
        size, words = 0.0, 0
        for first in range(0, len(self), self.phase.batch_size):
            batch = self.collate([self[i] for i in range(first, min(first + self.phase.batch_size, len(self)))])
            states = nn.functional.pad(batch["states"].double().cpu(), (0, 1), value=1.0)  # the last column: the bias
            wanted = self._embed(batch["labels"][batch["labels"] != IGNORED]).double().cpu()
            gram += states.T @ states
            cross += states.T @ wanted
            size, words = size + float(wanted.square().sum()), words + len(states)
        found = torch.linalg.solve(gram + RIDGE * gram.trace() / inner * torch.eye(inner).double(), cross)
        error = size - float(2 * (found * cross).sum() - (found * (gram @ found)).sum())
        projector.weight.copy_(found[:-1].T)
        if projector.bias is not None:
            projector.bias.copy_(found[-1])
        if markers is not None:
            known = [ids[0] for ids in map(self._marker, range(1, len(markers) + 1)) if len(ids) == 1]
            markers[: len(known)] = self._embed(torch.stack(known))
        return Outcome(0, error / size, time.monotonic() - started, len(self), 2.0 * words * inner * (inner + outer))

    def _embed(self, ids: Tensor) -> Tensor:
        return self.model.backbone.language_model.get_input_embeddings()(ids.to(self.model.device))
