"""The captioner by its definition: one segment and one token at a time, no batch, no mask, no cache, in float64.

Letters: n caption tokens, Z captioner width.
"""

import copy

import torch
from torch import Tensor

from langdc.captioner import Captioner


class SlowCaptioner:
    """Runs the captioner's language model on one growing row."""

    def __init__(self, captioner: Captioner) -> None:
        self.model = copy.deepcopy(captioner.language_model).double()
        self.before, self.after = captioner.before, captioner.after
        self.layer = captioner.layer

    @torch.no_grad()
    def last(self, visual: Tensor, caption: list[int]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the next token, and the state at the last position, after so much of a caption."""
        words = self.model.get_input_embeddings()
        parts = [words(self.before), visual.double(), words(self.after)]
        parts += [words(torch.tensor([token])) for token in caption]
        found = self.model(inputs_embeds=torch.cat(parts)[None], output_hidden_states=True, use_cache=False)
        return found.logits[0, -1].log_softmax(-1), found.hidden_states[self.layer][0, -1]

    def loss(self, visual: Tensor, caption: list[int], end: int) -> float:
        """Nats of every caption token and of the end."""
        whole = [*caption, end]
        return sum(-float(self.last(visual, whole[:i])[0][token]) for i, token in enumerate(whole))

    def states(self, visual: Tensor, caption: list[int], soft_token: str) -> Tensor:
        """[n,Z]: "at" each token's own position, or "predicting" it."""
        shift = {"at": 1, "predicting": 0}[soft_token]
        rows = [self.last(visual, caption[: i + shift])[1] for i in range(len(caption))]
        return torch.stack(rows).float() if rows else torch.empty(0, self.model.config.hidden_size)

    def write(self, visual: Tensor, ends: list[int], most: int) -> list[int]:
        """The greedy caption."""
        caption: list[int] = []
        while len(caption) < most:
            token = int(self.last(visual, caption)[0].argmax())
            if token in ends:
                break
            caption.append(token)
        return caption
