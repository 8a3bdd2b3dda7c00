"""What the commands that convert a release have in common."""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from langdc.conversion.videogpt import Options, convert
from langdc.verify import prepare, verify_converted

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where parts lie, and how they are stored."""
    parser.add_argument("--language", type=Path, help="directory of the language model, with its tokenizer")
    parser.add_argument("--image-encoder", type=Path, help="directory of the CLIP")
    parser.add_argument("--video-encoder", type=Path, help="InternVideo2's .pt file, or the directory made of it")
    parser.add_argument("--projectors", type=Path, help="file of projectors that the release itself does not hold")
    parser.add_argument("--heads", type=int, help="the video encoder's heads, where its width is of no published size")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="type that all weights pass through")
    parser.add_argument("--no-verify-save", action="store_true", help="do not load what was written again")


def given_parts(options: argparse.Namespace) -> dict[str, Any]:
    """Those options as fields of `Options`."""
    names = ("language", "image_encoder", "video_encoder", "projectors", "heads")
    return {**{name: getattr(options, name) for name in names}, "dtype": DTYPES[options.dtype]}


def run(kind: str, release: Path, out: Path, options: Options, verify: bool) -> int:
    """Convert, tell what became of all tensors, and load the result in a fresh process; 2 for a user's mistake."""
    console = Console(soft_wrap=True)
    if verify:
        prepare()
    try:
        made = convert(kind, release, out, options)
        for line in [*made.report.lines(), *made.notes]:
            console.print(line, markup=False, highlight=False)
        if verify:
            seen = verify_converted(out, made.hashes)
            console.print(f"{out}: a fresh process loaded the same {seen.tensors} tensors and logits", highlight=False)
    except ValueError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        return 2
    return 0
