"""Tiny image-text models with random weights, and a video whose scenes have a colour each."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from langdc.types import Frames
from langdc.video import write_video

WORDS = [
    *("<s>", "</s>", "<pad>", "<unk>", "what", "which", "colour", "is", "the"),
    *("red", "green", "blue", "video", "in", "at", "end", "shape", "?"),
]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
FPS = 4


def folder(path: Path, kind: str = "clip", seed: int = 0) -> Path:
    """A checkpoint of a tiny CLIP or SigLIP that reads 12 tokens and images of 16 x 16 pixels."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **marks).save_pretrained(path)
    text = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 12, "eos_token_id": 1, "bos_token_id": 0}
    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    torch.manual_seed(seed)
    if kind == "clip":
        config = CLIPConfig(text_config={**text, "pad_token_id": 2}, vision_config=vision, projection_dim=24)
        CLIPModel(config).save_pretrained(path)
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(path)
    else:
        text |= {"pad_token_id": 2, "projection_size": 32}
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(path)
        SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(path)
    return path


def scenes(path: Path, colours: str = "gggggggrrggg") -> Path:
    """A video of a second of each colour (r, g, b), 4 frames a second."""
    pixels = np.full((len(colours) * FPS, 48, 64, 3), 20, np.uint8)
    for number, colour in enumerate(colours):
        pixels[number * FPS : (number + 1) * FPS, ..., "rgb".index(colour)] = 220
    write_video(path, pixels, FPS)
    return path


def redness(frames: Frames, question: str) -> torch.Tensor:
    """A scorer: how red frames are; of a question about green, how green."""
    means = frames.pixels.float().mean((2, 3))
    wanted = 1 if "green" in question else 0
    return means[:, wanted] - means[:, 1 - wanted]
