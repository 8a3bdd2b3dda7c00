"""Teach the sample language model the sample's language, so that it can answer from text before it sees a video.

Every example is one video's captions as text, and several questions about it that see the captions but not each
other: the captions are read once. The model is scored on replies and, lightly, on the captions themselves.
Letters: B examples, M length.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from langdc.sample.questions import ask_all
from langdc.sample.scenes import Segment, as_text, caption, sample_segment, sample_video

IMAGE_SHARE = 0.08
CAPTION_WEIGHT = 0.1
EARLY = 0.3  # share of the steps with one question of each kind
NOISE = 0.7  # of the words' size
NOISY_FROM = 0.6  # share of the steps after which words are noisy
ROUND = 32  # lengths are padded to multiples of this, so that a compiled model meets few shapes


@dataclass
class Texts:
    """What is read and what is asked: the captions, and (question, reply, kind) triples."""

    captions: str
    turns: list[tuple[str, str, str]]


def video_texts(rng: np.random.Generator, video: list[Segment], rounds: int = 1) -> Texts:
    """Captions of a video, `rounds` questions of each kind, and requests to describe a segment and the whole."""
    captions = [caption(segment) for segment in video]
    number = int(rng.integers(len(video)))
    asked = {q.text: (q.text, q.answer, q.kind) for _ in range(rounds) for q in ask_all(rng, video)}
    turns = [*asked.values(), (f"describe segment {number + 1}", captions[number], "describe")]
    if rng.random() * rounds < 1:
        turns.append(("describe the video", as_text(captions), "describe_video"))
    return Texts(as_text(captions), turns)


def draw_texts(rng: np.random.Generator, rounds: int) -> Texts:
    """A random video's texts, or now and then an image's."""
    if rng.random() >= IMAGE_SHARE:
        return video_texts(rng, sample_video(rng), rounds)
    segment = sample_segment(rng)
    text = caption(segment, motions=False)
    return Texts(text, [("describe the image", text, "describe_image")])


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

    def rows(self, texts: Texts) -> np.ndarray:
        """One example as rows: ids, labels, positions, branches [4,M]; branch 0 is what all questions see."""
        shared = self.opening + self.ids(texts.captions)
        ids, labels = list(shared), [-100] * len(self.opening) + shared[len(self.opening) :]
        positions, branches = list(range(len(shared))), [0] * len(shared)
        for number, turn in enumerate(texts.turns, 1):
            question, reply = self.question(turn)
            ids += question + reply
            labels += [-100] * len(question) + reply
            positions += range(len(shared), len(shared) + len(question) + len(reply))
            branches += [number] * (len(question) + len(reply))
        return np.array([ids, labels, positions, branches])

    def batch(self, rng: np.random.Generator, size: int, rounds: int = 1) -> Tensor:
        """Examples padded to one length: [4,B,M]."""
        rows = [self.rows(draw_texts(rng, rounds)) for _ in range(size)]
        length = -(-max(row.shape[1] for row in rows) // ROUND) * ROUND
        padding = np.array([self.tokenizer.pad_token_id, -100, 0, -1])
        padded = np.tile(padding[:, None, None], (1, size, length))
        for number, row in enumerate(rows):
            padded[:, number, : row.shape[1]] = row
        return torch.from_numpy(padded)


def branch_mask(branches: Tensor) -> Tensor:
    """Back in time, within the own branch or at what all share; padding sees itself: [B,1,M,M]."""
    length = branches.shape[1]
    same = branches[:, :, None] == branches[:, None, :]
    shared = branches[:, None, :] == 0
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return ((causal & (same | shared)) | torch.eye(length, dtype=torch.bool))[:, None]


def build_model(
    tokenizer: PreTrainedTokenizerBase,
    width: int,
    layers: int,
    spread: float = 0.02,
    strength: float = 8.0,
    rotary_base: float = 10000.0,
) -> Qwen2ForCausalLM:
    """A fresh small Qwen2 with tied embeddings and heads of 32, two of which begin by looking back.

    `spread`: standard deviation of its weights; `strength` as in `look_back`.
    """
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": rotary_base},
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=tokenizer.get_vocab()[str(tokenizer.eos_token)],
        pad_token_id=tokenizer.get_vocab()[str(tokenizer.pad_token)],
    )
    model = Qwen2ForCausalLM(config)
    for head, offset in enumerate((1, 2)):
        look_back(model, head, offset, strength)
    return model


@torch.no_grad()
def look_back(model: Qwen2ForCausalLM, head: int, offset: int, strength: float = 8.0) -> None:
    """Let a head of the first layer begin by attending `offset` tokens back, through its query and key biases.

    Look-ups need heads that know what stands before a word; found from scratch they come after thousands of steps. A
    rotary query bias turned back by `offset` positions from the key bias scores highest at that distance.
    """
    attention: Any = model.model.layers[0].self_attn
    rotary = model.model.rotary_emb
    turn = rotary.inv_freq[:8] * offset  # the slow frequencies cannot tell neighbours apart
    half = attention.head_dim // 2
    first = slice(head * attention.head_dim, head * attention.head_dim + len(turn))
    second = slice(first.start + half, first.start + half + len(turn))
    attention.k_proj.bias[first] = strength
    attention.q_proj.bias[first] = strength * turn.cos()
    attention.q_proj.bias[second] = -strength * turn.sin()


def blurred(embeds: Tensor, noise: float) -> Tensor:
    """Embeddings [B,M,D] with noise added, per example of a strength between 0 and `noise` times their size."""
    size = embeds.detach().square().mean(-1, keepdim=True).sqrt()
    return embeds + torch.randn_like(embeds) * size * torch.rand(len(embeds), 1, 1) * noise


def loss_of(model: Qwen2ForCausalLM, forward: Callable, batch: Tensor, noise: float = 0.0) -> Tensor:
    """Weighted cross-entropy: replies count fully, captions lightly. `noise` as in `blurred`."""
    ids, labels, positions, branches = batch
    embeds = blurred(model.get_input_embeddings()(ids), noise)
    with torch.autocast("cpu", torch.bfloat16):
        found = forward(inputs_embeds=embeds, position_ids=positions, attention_mask=branch_mask(branches))
        learned = labels[:, 1:] != -100
        logits = model.lm_head(found.last_hidden_state[:, :-1][learned]).float()
    weight = torch.where(branches[:, 1:] == 0, CAPTION_WEIGHT, 1.0)[learned]
    return (F.cross_entropy(logits, labels[:, 1:][learned], reduction="none") * weight).sum() / weight.sum()


def build_optimizers(model: Qwen2ForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest. With AdamW alone, look-ups took ten times the steps."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def learning_rate(done: float, peak: float, step: int) -> float:
    """Linear warm-up over 200 steps, flat, then linear decay over the last 40 % of training; `done` in 0..1."""
    return peak * min(1.0, step / 200) * min(1.0, max(0.02, (1 - done) / 0.4))


def pretrain(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    size: int,
    peak: float,
    seed: int,
    report: Callable[[int, float, float], None],
) -> None:
    """Train on freshly drawn examples; `report(step, loss, seconds)` every 100 steps.

    The last steps are made with noise on the words. A model that has only seen exact ones attends so sharply that it
    understands nothing of tokens that are near words, which is what projectors make.
    """
    encoder, rng = Encoder(tokenizer), np.random.default_rng(seed)
    optimizers = build_optimizers(model, peak)
    forward = torch.compile(model.model, dynamic=False)
    started = time.monotonic()
    for step in range(1, steps + 1):
        # copying comes first and needs few questions; look-ups by two words need many
        rounds = 1 if step < EARLY * steps else 3
        noise = NOISE if step > NOISY_FROM * steps else 0.0
        loss = loss_of(model, forward, encoder.batch(rng, size, rounds), noise)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step / steps, peak, step)
            optimizer.step()
        if step % 100 == 0:
            report(step, loss.item(), time.monotonic() - started)


@torch.no_grad()
def accuracy(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, videos: int, seed: int) -> dict[str, float]:
    """Share of replies that greedy decoding gets exactly right, per kind, on `videos` fresh videos, asked singly."""
    encoder, rng = Encoder(tokenizer), np.random.default_rng(seed)
    right: dict[str, list[bool]] = {}
    for _ in range(videos):
        texts = video_texts(rng, sample_video(rng))
        shared = encoder.opening + encoder.ids(texts.captions)
        for turn in texts.turns:
            question, reply = encoder.question(turn)
            ids = torch.tensor([shared + question + reply])
            said = model(ids[:, :-1]).logits[0, -len(reply) :].argmax(-1)
            right.setdefault(turn[2], []).append(said.tolist() == reply)
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}
