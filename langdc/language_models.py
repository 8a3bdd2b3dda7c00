"""Causal language models and their tokenizers, loaded from a source."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from langdc.sources import Source, resolve

VIDEO_MARK = "\ue000"  # a private-use character: stands for a video while a chat template lays out the text


def load_language_model(source: Source, attention: str = "sdpa", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load any causal language model of transformers; weights of random init come from torch's seed."""
    found = resolve(source)
    if isinstance(found, Path):
        return AutoModelForCausalLM.from_pretrained(found, attn_implementation=attention, dtype=dtype or torch.float32)
    return AutoModelForCausalLM.from_config(found.sizes(), attn_implementation=attention, dtype=dtype or torch.float32)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer with a chat template; ValueError if it has none."""
    folder = resolve(str(source))
    if not isinstance(folder, Path) or not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer (no tokenizer_config.json).")
    stated = json.loads((folder / "tokenizer_config.json").read_text()).get("tokenizer_class")
    # AutoTokenizer takes the class of the model type beside it, even where the files say that they stand for themselves
    kind = PreTrainedTokenizerFast if stated in ("TokenizersBackend", "PreTrainedTokenizerFast") else AutoTokenizer
    tokenizer = kind.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise ValueError(f"The tokenizer in {folder} has no chat template; use that of an instruction-tuned model.")
    return tokenizer


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a reply: the tokenizer's, and those of the model's generation settings."""
    settings = getattr(model, "generation_config", None) or GenerationConfig()
    stated = settings.eos_token_id
    stated = [] if stated is None else [stated] if isinstance(stated, int) else list(stated)
    own = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    return sorted({*own, *stated})


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Token ids of a text, without added special tokens: [n]."""
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
