"""Every compressor on every backbone: tiny models, ragged videos and batches of them, for the contract tests."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from langdc.adapters import adapt
from langdc.backbones.chat import conversation, question_of
from langdc.config import LoraConfig, MemberConfig, ModelConfig
from langdc.language_models import ids_of
from langdc.model import VideoModel
from langdc.train.trainable import unfreeze
from langdc.types import Context, Frames, VideoBatch
from tests import stock, tiny

STOCK_POSITIONS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"positions": "transformers"},
    "qwen2_5_vl": {"positions": "transformers"},
    "qwen3_vl": {"positions": "transformers"},
    "llava_onevision": {},
    "llava_video": {"grid": "onevision"},
    "internvl": {},
    "video_llama_3": {},
    "qwen3_5": {"positions": "transformers"},
}
"""Settings with which a stock backbone numbers positions as transformers does."""
BACKBONES = (*STOCK_POSITIONS, "videogpt_plus")
SHARING = tuple(name for name in BACKBONES if name not in stock.RECURRENT)
"""Those on which several questions or samples may share a sequence."""
MEMBERS: dict[str, dict[str, Any]] = {
    "identity": {},
    "vidcom2": {"keep": 0.5},
    "pool": {"sides": [2]},
    "resampler": {"queries": 3, "depth": 1},
    "ldpv2": {"sides": [2]},
    "selector": {"keep": 0.4},
    "matryoshka": {"queries": 4, "tokens": 3, "depth": 1},
    "langdc": {},
}
"""Compressors that are trained on every backbone, with the settings they are tried with."""
TRAINING_FREE: dict[str, dict[str, Any]] = {
    "random": {"keep": 0.5},
    "uniform": {"keep": 0.5},
    "dpselect": {"keep": 0.5},
    "divprune": {"keep": 0.5},
    "dycoke": {"keep": 0.5},
    "evs": {"keep": 0.5},
    "fastvid": {"keep": 0.5},
    "holitom_outer": {"keep": 0.5},
    "cdpruner": {"keep": 0.5},
    "flashvid": {"keep": 0.5},
    "ma_lmm": {"keep": 0.5},
    "visionzip": {"keep": 0.5},
    "chain": {"members": [{"name": "dpselect", "keep": 0.5}, {"name": "vidcom2", "keep": 0.5}]},
}
"""The others, which have nothing to learn, as vidcom2 has not; asked of one backbone."""
QUESTIONS = [
    ("what is in the video ?", "a dog"),
    ("how many cat", "red ring . square"),
    ("what ?", "2 seconds of them"),
]
CAPTIONS = ("a red ring", "the dog", "a blue square turns", "cat")


def clips(name: str) -> list[Frames]:
    """Three videos of different length and shape."""
    if name == "videogpt_plus":
        return [tiny.frames(0, count=4), tiny.frames(1, count=8), tiny.frames(2, count=4)]
    return [stock.clip(1), stock.clip(2, count=4, height=32, width=24), stock.clip(3, count=6)]


def model_config(name: str, member: str, **settings: Any) -> ModelConfig:
    given: dict[str, Any] = {**{**MEMBERS, **TRAINING_FREE}[member], **settings}
    if name == "videogpt_plus":
        backbone = tiny.backbone_settings()
        if "sides" in given:
            given["sides"] = [2, 2]
        if member == "langdc":
            given = {**tiny.langdc_settings(pool=[2, 2]), **given}
    else:
        backbone = {"source": stock.folder(name), **STOCK_POSITIONS[name]}
        if member == "langdc":
            given = {**tiny.langdc_settings(pool=[2]), "frames_per_segment": 2, **given}
    return ModelConfig(backbone=MemberConfig(name=name, **backbone), compressor=MemberConfig(name=member, **given))


def build(name: str, member: str, **settings: Any) -> tuple[VideoModel, set[str]]:
    """A model whose compressor and adapters are trained, and the names of what is."""
    torch.manual_seed(0)
    model = VideoModel(model_config(name, member, **settings)).eval()
    adapt(model.backbone.text_model, LoraConfig(rank=4, alpha=8, dropout=0.0))
    patterns = ["compressor.*"] if any(True for _ in model.compressor.parameters()) else []
    return model, unfreeze(model, patterns, adapters=True)


def batch_of(
    model: VideoModel, videos: Sequence[Frames], learn: bool = True, pairs: Sequence[tuple[str, str]] = QUESTIONS
) -> VideoBatch:
    """One question about each video."""
    backbone, steps = model.backbone, model.compressor.frames_per_segment
    raw = backbone.encode(list(videos), model.compressor.needs)
    seconds = [video.seconds for video in videos]
    media = backbone.project(raw, seconds, frozenset())
    messages = [conversation(question, answer if learn else None) for question, answer in pairs]
    prompts = [
        backbone.prompt(each, learn=learn, media=[video], segment_steps=steps)
        for each, video in zip(messages, media, strict=True)
    ]
    questions = None
    if "question" in model.compressor.needs:
        questions = [ids_of(backbone.tokenizer, question_of(each)) for each in messages]
    return VideoBatch(
        raw, seconds, prompts, [(number,) for number in range(len(videos))], captions(model, media), questions
    )


def captions(model: VideoModel, media: Sequence[Any]) -> dict[str, list[list[Tensor]]]:
    """Targets for a compressor that learns captions."""
    if "caption" not in model.compressor.losses:
        return {}
    encode: Any = model.compressor.captioner.encode  # pyright: ignore[reportAttributeAccessIssue]
    counts = [-(-video.grid[0] // model.compressor.frames_per_segment) for video in media]
    return {
        "captions": [
            [encode(CAPTIONS[(row + number) % len(CAPTIONS)]) for number in range(count)]
            for row, count in enumerate(counts)
        ]
    }


def single(batch: VideoBatch, number: int) -> VideoBatch:
    """One video of a batch and its prompt."""
    return replace(
        batch,
        raw=[batch.raw[number]],
        seconds=[batch.seconds[number]],
        prompts=[batch.prompts[number]],
        shows=[(0,)],
        targets={name: [values[number]] for name, values in batch.targets.items()},
        questions=None if batch.questions is None else [batch.questions[number]],
    )


def answer_loss(model: VideoModel, batch: VideoBatch, context: Context = Context()) -> tuple[Tensor, int]:
    """Summed cross-entropy of the replies, and how many tokens it was summed over."""
    found = model(batch, context)
    return F.cross_entropy(found.logits.float(), found.labels, reduction="sum"), len(found.labels)


def train(model: VideoModel, batch: VideoBatch, steps: int, rate: float) -> list[float]:
    """The replies' mean loss before each of `steps` steps of AdamW on one batch, all losses of the compressor added."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=rate)
    wanted = frozenset({"tokens", *model.compressor.losses})
    history = []
    model.train()
    for step in range(steps):
        draws = torch.Generator().manual_seed(step)
        found = model(batch, Context(True, step / max(steps - 1, 1), draws, wanted=wanted))
        answer = F.cross_entropy(found.logits.float(), found.labels)
        own = sum(total / max(count, 1) for total, count in found.compressed.losses.values())
        optimizer.zero_grad()
        (answer + own).backward()
        optimizer.step()
        history.append(float(answer.detach()))
    model.eval()
    return history


@cache
def grid() -> list[tuple[str, str]]:
    """All pairs of backbone and compressor."""
    return [(name, member) for name in BACKBONES for member in MEMBERS]
