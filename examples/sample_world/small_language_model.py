"""A small Qwen2 some of whose heads start with a fixed attention pattern, its optimizers, and texts as its token ids.

From random weights, such look-ups take thousands of steps to learn. Letters: B examples, M length, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

ROTARY_BASE = 1e6  # so that half of the rotary frequencies hardly turn over a video: see `look_up`
STRENGTH = 8.0  # of the biases by which heads look back


class Encoder:
    """Turns texts into token rows; remembers the ids of strings, which repeat endlessly."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.opening = self.ids("<|im_start|>user\n")
        self.reply = self.ids("<|im_end|>\n<|im_start|>assistant\n")
        self.end = self.ids(str(tokenizer.eos_token))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, remembered by word."""
        found: list[int] = []
        for word in text.replace("(", " ( ").replace(")", " ) ").split(" "):
            if word and word not in self._known:
                self._known[word] = self.tokenizer.encode(word, add_special_tokens=False)
            found += self._known.get(word, [])
        return found

    def question(self, turn: tuple[str, str, str]) -> tuple[list[int], list[int]]:
        """A question with its frame, and the reply with its end: ids each."""
        return [*self.ids("\n"), *self.ids(turn[0]), *self.reply], [*self.ids(turn[1]), *self.end]


def build_model(tokenizer: PreTrainedTokenizerBase, width: int, layers: int) -> Qwen2ForCausalLM:
    """A small Qwen2 with random weights, tied embeddings and heads of width 32, two of which start as `look_back`."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
        bos_token_id=None,
        eos_token_id=tokenizer.get_vocab()[str(tokenizer.eos_token)],
        pad_token_id=tokenizer.get_vocab()[str(tokenizer.pad_token)],
    )
    model = Qwen2ForCausalLM(config)
    for head, offset in enumerate((1, 2)):
        look_back(model, head, offset)
    return model


@torch.no_grad()
def look_back(model: Qwen2ForCausalLM, head: int, offset: int) -> None:
    """Let a head of the first layer begin by attending `offset` tokens back, through its query and key biases.

    A rotary query bias turned back by `offset` positions from the key bias scores highest at that distance.
    """
    attention: Any = model.model.layers[0].self_attn
    rotary = model.model.rotary_emb
    turn = rotary.inv_freq[:8] * offset  # the slow frequencies cannot tell neighbours apart
    half = attention.head_dim // 2
    first = slice(head * attention.head_dim, head * attention.head_dim + len(turn))
    second = slice(first.start + half, first.start + half + len(turn))
    attention.k_proj.bias[first] = STRENGTH
    attention.q_proj.bias[first] = STRENGTH * turn.cos()
    attention.q_proj.bias[second] = -STRENGTH * turn.sin()


@torch.no_grad()
def look_up(model: Qwen2ForCausalLM, layer: int, head: int, pairs: Sequence[tuple[Tensor, Tensor]], keys: int) -> None:
    """Let a head begin by attending from words to what looks like them, and by writing in words what is seen there.

    `pairs` of a word and its look, up to one per dimension of the head; the first `keys` of them, up to half of that,
    are looked up: each has a dimension among the slow rotary frequencies, which distance hardly turns. A word and its
    look are not alike, or words would attend to themselves.
    """
    attention: Any = model.model.layers[layer].self_attn
    half, start = attention.head_dim // 2, head * attention.head_dim
    for number, pair in enumerate(pairs[:keys]):
        place = start + (half if number % 2 else 0) + half - 1 - number // 2
        for projection, vector in zip((attention.q_proj, attention.k_proj), pair, strict=True):
            projection.weight[place] = 0.85 * vector / vector.norm()
    for number, (word, look) in enumerate(pairs):
        attention.v_proj.weight[start + number] = 0.5 * look / look.norm()
        attention.o_proj.weight[:, start + number] = 0.5 * word


@torch.no_grad()
def show_words(model: Qwen2ForCausalLM, head: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Let a head of the first layer begin by writing the looks of the words that it attends to.

    So the last word of "red square left" looks like the object, and is found in the same way as tokens of a video.
    """
    attention: Any = model.model.layers[0].self_attn
    start = head * attention.head_dim
    for number, (word, look) in enumerate(pairs):
        attention.v_proj.weight[start + number] = 0.5 * word / word.norm()
        attention.o_proj.weight[:, start + number] = 0.5 * look


@torch.no_grad()
def look_at_question(model: Qwen2ForCausalLM, layer: int, head: int) -> None:
    """Let a head begin by attending to the dozen tokens before it, where a question's words stand before its answer."""
    attention: Any = model.model.layers[layer].self_attn
    turn = model.model.rotary_emb.inv_freq[2:6] * 9
    first = head * attention.head_dim + 2
    second = first + attention.head_dim // 2
    attention.k_proj.bias[first : first + 4] = 3.0
    attention.q_proj.bias[first : first + 4] = 3.0 * turn.cos()
    attention.q_proj.bias[second : second + 4] = -3.0 * turn.sin()


def blurred(embeds: Tensor, noise: float) -> Tensor:
    """Embeddings [B,M,D] with noise added, per example of a strength between 0 and `noise` times their size."""
    size = embeds.detach().square().mean(-1, keepdim=True).sqrt()
    return embeds + torch.randn_like(embeds) * size * torch.rand(len(embeds), 1, 1) * noise


def build_optimizers(model: Qwen2ForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest. With AdamW alone, look-ups took ten times the steps."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
