"""What the commands of `langdc convert` share, and those of releases made of several parts."""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from langdc import checkpoint, jsonl, sources
from langdc.encoders.video import VideoEncoder
from langdc.hashing import tensor_hash
from langdc.language_models import load_language_model

REPORT = "conversion.json"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_SHOWN = 8


@contextmanager
def open_output(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` when all is written and is removed otherwise.

    ValueError if `out` is there already.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; give a directory that does not exist yet.")
    with jsonl.writing_folder(out) as beside:
        yield beside


def add_verify_option(parser: argparse.ArgumentParser) -> None:
    """`--no-verify-save`: whether what was written is loaded again."""
    parser.add_argument("--no-verify-save", action="store_true", help="do not load what was written again")


def check_saved(directory: Path, hashes: Mapping[str, str]) -> str:
    """Load a written directory and compare every tensor with what it was made of; a line that says so.

    `hashes`: `tensor_hash` of each as float32, by its name in the loaded model. ValueError names those that differ.
    """
    model = _open(directory)
    left_out = getattr(model, "untrained", frozenset())
    found = {
        name: tensor_hash(p, torch.float32)
        for name, p in model.named_parameters(remove_duplicate=False)
        if name not in left_out
    }
    differing = sorted(name for name in found.keys() | hashes.keys() if found.get(name) != hashes.get(name))
    if differing:
        raise ValueError(
            f"{directory} was written, but {len(differing)} of the tensors that load from it differ; do not use it: "
            f"{', '.join(differing[:_SHOWN])}."
        )
    return f"{directory}: loaded again, the same {len(found)} tensors"


def _open(directory: Path) -> nn.Module:
    """A checkpoint, an adapter, a language model or an InternVideo2."""
    if (directory / checkpoint.MANIFEST).is_file():
        return checkpoint.load(directory)
    if (directory / "adapter_config.json").is_file():
        return _adapted(directory)
    if "model_type" in json.loads((directory / "config.json").read_text()):
        return load_language_model(str(directory))
    return VideoEncoder(str(directory))


def _adapted(directory: Path) -> nn.Module:
    """The published model that an adapter names, with it."""
    import peft  # takes seconds, and few saves are adapters
    import transformers

    base: Any = sources.resolve(peft.PeftConfig.from_pretrained(str(directory)).base_model_name_or_path or "")
    config: Any = transformers.AutoConfig.from_pretrained(base)
    model = getattr(transformers, config.architectures[0]).from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, str(directory))


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """Options of releases in parts: where the parts are, and how they are stored."""
    parser.add_argument("release", type=Path, help="directory of the release")
    parser.add_argument("out", type=Path, help="directory to make")
    parser.add_argument("--language", type=Path, help="directory of the language model, with its tokenizer")
    parser.add_argument("--image-encoder", type=Path, help="directory of the CLIP")
    parser.add_argument("--video-encoder", type=Path, help="InternVideo2's .pt file, or the directory made of it")
    parser.add_argument("--projectors", type=Path, help="file of projectors that the release itself does not hold")
    parser.add_argument("--heads", type=int, help="the video encoder's heads, where its width is of no published size")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="type that all weights pass through")
    add_verify_option(parser)
