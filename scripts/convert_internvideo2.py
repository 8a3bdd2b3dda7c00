"""python scripts/convert_internvideo2.py InternVideo2-stage2_1b-224p-f4.pt internvideo2-1b

Turns the published training state of InternVideo2-stage2 into a directory that the video encoder loads. The file is
read with `weights_only`; every tensor is accounted for in conversion.json, and one that is missing, unknown or of
another shape stops the conversion: nothing is ever left random.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from langdc.verify import verify_converted
from rich.console import Console

from langdc import jsonl
from langdc.conversion import internvideo2
from langdc.conversion.names import NameReport
from langdc.hashing import tensor_hash

REPORT = "conversion.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the new directory; 0 when it worked, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("published", type=Path, help="the published .pt file")
    parser.add_argument("out", type=Path, help="directory to make")
    parser.add_argument("--heads", type=int, help="attention heads, where the width is of no published size")
    parser.add_argument("--dtype", choices=DTYPES, help="type to store; default: that of the file")
    parser.add_argument("--no-verify-save", action="store_true", help="do not load what was written again")
    options = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    try:
        dtype = None if options.dtype is None else DTYPES[options.dtype]
        report, hashes = convert(options.published, options.out, options.heads, dtype)
        for line in report.lines():
            console.print(line, markup=False, highlight=False)
        if not options.no_verify_save:
            seen = verify_converted(options.out, hashes)
            console.print(f"{options.out}: a fresh process loaded the same {seen.tensors} tensors", highlight=False)
    except ValueError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        return 2
    return 0


def convert(
    published: Path, out: Path, heads: int | None = None, dtype: torch.dtype | None = None
) -> tuple[NameReport, dict[str, str]]:
    """Write `out`, whole or not at all: the report, and the sha256 of every tensor that loading it must give."""
    if out.exists():
        raise ValueError(f"{out} exists already; give a directory that is yet to be made.")
    tensors, heads = internvideo2.read(published, heads)
    config, converted, report = internvideo2.convert(tensors, heads, dtype)
    with jsonl.writing_folder(out) as beside:
        internvideo2.write(beside, config, converted)
        jsonl.write_json(beside / REPORT, report.as_json())
    return report, {f"model.{name}": tensor_hash(tensor, torch.float32) for name, tensor in converted.items()}


if __name__ == "__main__":
    sys.exit(main())
