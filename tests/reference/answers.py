"""A backbone's loss by its definition: one prompt, one label at a time, no padding, no mask."""

import torch
from torch import Tensor

from langdc.interfaces import Backbone
from langdc.types import Prompt


@torch.no_grad()
def slow_losses(backbone: Backbone, prompt: Prompt, videos: list[Tensor]) -> list[float]:
    """Nats of every learned token of a prompt whose k-th slot holds `videos[k]` [N,D]."""
    rows: list[Tensor] = []
    labels: list[int] = []
    for position in range(len(prompt.ids) + 1):
        for slot in prompt.slots:
            if slot.position == position:
                rows += list(videos[slot.video])
                labels += [-100] * len(videos[slot.video])
        if position < len(prompt.ids):
            rows.append(backbone.text_model.get_input_embeddings()(prompt.ids[position]))
            labels.append(int(prompt.labels[position]))
    embeds = torch.stack(rows)[None]
    losses = []
    for position, label in enumerate(labels):
        if label != -100:
            found = backbone.text_model(inputs_embeds=embeds[:, :position], use_cache=False).last_hidden_state[0, -1]
            losses.append(-float(backbone.lm_head(found).log_softmax(-1)[label]))
    return losses
