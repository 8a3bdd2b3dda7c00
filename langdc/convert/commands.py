"""What the commands of `langdc convert` share: their output folder, its report, and the check of what was saved."""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from langdc import checkpoint, jsonl, sources
from langdc.convert.names import SHOWN, NameReport
from langdc.encoders.video import VideoEncoder
from langdc.hashing import tensor_hash
from langdc.language_models import load_language_model
from langdc.log import progress

REPORT = "conversion.json"


def check_place(out: Path) -> None:
    """ValueError if `out` is there already, OSError if it cannot be made: before anything is loaded."""
    if out.exists():
        raise ValueError(f"{out} exists already; give a directory that does not exist yet.")
    jsonl.check_output(out)


@contextmanager
def open_output(out: Path, size: float | None = None) -> Iterator[Path]:
    """A folder to write to, which becomes `out` when all is written; ValueError if `out` is there already.

    `size`: about how many MB it will hold.
    """
    check_place(out)
    with jsonl.writing_folder(out) as beside, progress(f"Writing {out}, MB", size, folder=beside):
        yield beside


def write_report(folder: Path, report: NameReport) -> None:
    """Write what became of every tensor."""
    jsonl.write_json(folder / REPORT, {"taken": report.taken, "dropped": report.dropped})


def add_verify_option(parser: argparse.ArgumentParser) -> None:
    """`--no-verify-save`: whether what was written is loaded again."""
    parser.add_argument("--no-verify-save", action="store_true", help="do not load what was written again")


def check_saved(directory: Path, hashes: Mapping[str, str]) -> str:
    """Load a written directory and compare every tensor with what it was made of; a line that says so.

    `hashes`: `tensor_hash` of each as float32, by its name in the loaded model. ValueError names those that differ.
    """
    with progress(f"Loading {directory} again"):
        model = _open(directory)
    stored = checkpoint.stored(model)
    for name in getattr(model, "untrained", ()):
        del stored[name]
    found = {name: tensor_hash(tensor, torch.float32) for name, tensor in stored.items()}
    differing = sorted(name for name in found.keys() | hashes.keys() if found.get(name) != hashes.get(name))
    if differing:
        raise ValueError(
            f"{directory} was written, but {len(differing)} of the tensors that load from it differ; do not use it: "
            f"{', '.join(differing[:SHOWN])}."
        )
    return f"{directory}: loaded again, the same {len(found)} tensors"


def _open(directory: Path) -> nn.Module:
    """A checkpoint, an adapter, a language model or an InternVideo2."""
    if (directory / checkpoint.MANIFEST).is_file():
        return checkpoint.load(directory)
    if (directory / "adapter_config.json").is_file():  # with the published model that it names
        import peft  # takes seconds, and few saves are adapters
        import transformers

        base: Any = sources.resolve(peft.PeftConfig.from_pretrained(str(directory)).base_model_name_or_path or "")
        config: Any = transformers.AutoConfig.from_pretrained(base, trust_remote_code=False)
        model = getattr(transformers, config.architectures[0]).from_pretrained(base, dtype=torch.float32)
        return peft.PeftModel.from_pretrained(model, str(directory))
    if "model_type" in json.loads((directory / "config.json").read_text()):
        return load_language_model(str(directory))
    return VideoEncoder(str(directory))
