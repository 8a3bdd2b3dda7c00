"""Small random language models of each rotary kind, with prompts. Letters: A rotary axes, M prompt length, D width."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2Model
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from langdc.prefill import PrefillOutput, prefill

WIDTH, VOCABULARY, LAYERS, HEADS, KEY_HEADS = 64, 96, 3, 4, 2
TEXT, FRAMES, FRAME, QUESTION = 5, 6, 8, 7
MODELS = {
    "one axis": (Qwen2Model, Qwen2Config),
    "sections": (Qwen2_5_VLTextModel, Qwen2_5_VLTextConfig),
    "interleaved": (Qwen3VLTextModel, Qwen3VLTextConfig),
}
KINDS = tuple(MODELS)


@dataclass(frozen=True)
class _Small:
    """A language model and its head."""

    text_model: PreTrainedModel
    lm_head: nn.Module


@cache
def small(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> _Small:
    """A model with random weights, large enough for attention to prefer some keys."""
    rotary = {"rope_type": "default", "rope_theta": 1e4}
    if kind != "one axis":
        rotary["mrope_section"] = [2, 3, 3]
    model, config = MODELS[kind]
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": WIDTH // HEADS,
        "initializer_range": 0.3,
        "max_position_embeddings": 512,
        "rope_parameters": rotary,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(seed)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
    return _Small(model(config(**sizes)).eval().to(dtype), head.to(dtype))


@dataclass(frozen=True)
class _Words:
    """A prompt: text, a video of 6 frames of 2 x 4 tokens, a question."""

    embeds: Tensor
    positions: Tensor
    video: Tensor


def prompt(kind: str, seed: int = 0, frames: int = FRAMES, question: int = QUESTION) -> _Words:
    """A prompt of noise, with positions of the model's kind."""
    length = TEXT + frames * FRAME + question
    embeds = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed))
    video = torch.zeros(length, dtype=torch.bool)
    video[TEXT : TEXT + frames * FRAME] = True
    if kind == "one axis":
        return _Words(embeds, torch.arange(length)[None, None], video)
    place = torch.arange(frames * FRAME)
    inside = TEXT + torch.stack([place // FRAME, place % FRAME // 4, place % 4])
    after = int(inside.max()) + 1 + torch.arange(question).expand(3, -1)
    return _Words(embeds, torch.cat([torch.arange(TEXT).expand(3, -1), inside, after], 1)[:, None], video)


def read(
    kind: str, compressor=None, words: _Words | None = None, model: _Small | None = None, **settings
) -> PrefillOutput:
    """Read a prompt in chunks of two frames."""
    model, words = model or small(kind), words or prompt(kind)
    settings = {"chunk_tokens": 2 * FRAME, "frame_tokens": FRAME, **settings}
    return prefill(model.text_model, model.lm_head, words.embeds, words.positions, words.video, compressor, **settings)


@torch.no_grad()
def plain(kind: str, words: _Words | None = None) -> Tensor:
    """The stock model's logits [1,V] after a prompt."""
    model, words = small(kind), words or prompt(kind)
    positions = words.positions if len(words.positions) > 1 else words.positions[0]
    states = model.text_model(inputs_embeds=words.embeds[None], position_ids=positions).last_hidden_state
    return model.lm_head(states[:, -1])
