"""Tiny stock checkpoints with a tokenizer and processors, and the stock model's own answers to compare with."""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)
from transformers.video_utils import VideoMetadata

from langdc.backbones import backbones
from langdc.backbones.stock import StockBackbone
from langdc.types import Frames
from langdc.video import write_video

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = {
    "qwen2_vl": "e2e_qwen2vl",
    "qwen2_5_vl": "e2e_qwen25vl",
    "qwen3_vl": "e2e_qwen3vl",
    "llava_onevision": "e2e_llava_ov",
    "llava_video": "e2e_llava_ov",
}
SENTENCE = "what is in the video picture a dog cat red ring square how many of them seconds . ? user assistant system"
MARKS = {
    "qwen": {"<|image_pad|>": 290, "<|video_pad|>": 291, "<|vision_start|>": 292, "<|vision_end|>": 293},
    "llava": {"<image>": 290, "<video>": 291},
}
PLACES = {
    "qwen": {
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
    },
    "llava": {"video": "<video>", "image": "<image>"},
}
PROCESSORS = {
    "qwen2_vl": Qwen2VLProcessor,
    "qwen2_5_vl": Qwen2_5_VLProcessor,
    "qwen3_vl": Qwen3VLProcessor,
    "llava_onevision": LlavaOnevisionProcessor,
}
FPS = 2.0


def family(name: str) -> str:
    return name.split("_")[0].rstrip("23")


def template(kind: str) -> str:
    places = PLACES[kind]
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
        "{% elif part['type'] == 'video' %}"
        + places["video"]
        + "{% else %}"
        + places["image"]
        + "{% endif %}{% endfor %}"
        "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )


def tokenizer(kind: str, size: int = 290) -> PreTrainedTokenizerFast:
    """One id per word, per digit and per sign; the marks of videos and images where the checkpoints have them."""
    listed = ["<unk>", "<|im_start|>", "<|im_end|>", *SENTENCE.split(), *"0123456789<>", "<0", "<1", "<2"]
    vocabulary = {word: number for number, word in enumerate(listed)}
    vocabulary |= {f"<spare{n}>": n for n in range(len(listed), size)} | MARKS[kind]
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<spare280>",
        extra_special_tokens=["<|im_start|>", *MARKS[kind]],
        chat_template=template(kind),
    )


@cache
def folder(name: str) -> str:
    """A checkpoint directory of a family: its tiny weights and the tokenizer."""
    made = Path(mkdtemp(prefix=name)) / "model"
    shutil.copytree(GOLDEN / FOLDERS[name], made)
    config = json.loads((made / "config.json").read_text())
    # the authors' test checkpoints end a reply at other ids than the tokenizer does
    (made / "config.json").write_text(json.dumps({**config, "eos_token_id": 2}))
    tokenizer(family(name)).save_pretrained(made)
    if name.startswith("qwen"):
        vision = config["vision_config"]
        settings = {
            "patch_size": vision["patch_size"], "temporal_patch_size": 2, "merge_size": 2,
            "size": {"shortest_edge": 64, "longest_edge": 8192},
        }  # fmt: skip
        kind = backbones.get(name)
        for processor in (kind.image_processor_class, kind.video_processor_class):
            processor(**settings).save_pretrained(made)
    return str(made)


def clip(number: int = 0, count: int = 8, height: int = 24, width: int = 32) -> Frames:
    """A video of slowly changing noise; a picture for `count` 1."""
    dice = torch.Generator().manual_seed(number)
    still = torch.rand(1, 3, height, width, generator=dice)
    change = torch.rand(count, 3, height, width, generator=dice)
    return Frames(((0.7 * still + 0.3 * change) * 255).to(torch.uint8), torch.arange(count) / FPS)


def mp4(directory: Path, count: int, fps: int) -> Path:
    """A file of `count` frames of such a clip."""
    path = directory / "clip.mp4"
    pixels = clip(0, count=count, height=48, width=64).pixels.permute(0, 2, 3, 1)
    write_video(path, np.ascontiguousarray(pixels.numpy()), fps)
    return path


def conversation(media: Sequence[Frames], text: str = "what is in the video ?") -> list[dict]:
    """A question after videos and pictures, in order, with words between them."""
    parts: list[dict] = []
    for shown in media:
        parts += [{"type": "image" if len(shown) == 1 else "video"}, {"type": "text", "text": " and "}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def stock_inputs(backbone: StockBackbone, name: str, media: Sequence[Frames]) -> dict[str, Any]:
    """What transformers' own processor makes of the conversation."""
    text = backbone.tokenizer.apply_chat_template(conversation(media), tokenize=False, add_generation_prompt=True)
    pictures = [shown.pixels[0] for shown in media if len(shown) == 1]
    videos = [shown.pixels for shown in media if len(shown) > 1]
    settings: dict[str, Any] = {}
    if videos:
        about = [VideoMetadata(len(v), FPS, frames_indices=list(range(len(v)))) for v in videos]
        settings["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": about}
        if name == "qwen2_5_vl":
            settings["videos_kwargs"]["fps"] = FPS
    found = processor(backbone, name)(
        text=[text], images=pictures or None, videos=videos or None, return_tensors="pt", **settings
    )
    return dict(found)


def learning_inputs(backbone: StockBackbone, name: str, video: Frames, messages: list[dict]) -> dict[str, Any]:
    """What transformers' own processor makes of a conversation with its reply, for the stock model's loss."""
    text = backbone.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    about = [VideoMetadata(len(video), FPS, frames_indices=list(range(len(video))))]
    settings: dict[str, Any] = {"do_sample_frames": False, "video_metadata": about}
    if name == "qwen2_5_vl":
        settings["fps"] = FPS
    made = processor(backbone, name)
    return dict(made(text=[text], videos=[video.pixels], return_tensors="pt", videos_kwargs=settings))


def processor(backbone: StockBackbone, name: str) -> Any:
    extra = {}
    if name.startswith("llava"):
        config = backbone.model.config
        extra = {
            "num_image_tokens": (config.vision_config.image_size // config.vision_config.patch_size) ** 2,
            "vision_feature_select_strategy": "full",
        }
    kind = PROCESSORS["llava_onevision" if name == "llava_video" else name]
    return kind(
        backbone.image_processor,
        backbone.tokenizer,
        backbone.video_processor,
        chat_template=backbone.tokenizer.chat_template,
        **extra,
    )


@torch.no_grad()
def stock_logits(backbone: StockBackbone, inputs: dict[str, Any]) -> Tensor:
    """The stock model's logits after the prompt."""
    return backbone.model(**inputs).logits[:, -1]


def stock_reply(backbone: StockBackbone, inputs: dict[str, Any], **options) -> list[int]:
    """The ids that the stock model writes."""
    found = backbone.model.generate(**inputs, do_sample=False, **options)
    return found[0, inputs["input_ids"].shape[1] :].tolist()
