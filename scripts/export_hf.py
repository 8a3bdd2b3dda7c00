"""python scripts/export_hf.py runs/langdc_3b/stage3_choice langdc-3b-hf

Turns a checkpoint of a training stage into plain Hugging Face directories with a model card: language model, captioner
and image encoder load with transformers alone. The adapter is merged, or with --adapter written as a PEFT directory
that the published language model takes. The whole is a checkpoint of this project too, and may be moved.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from langdc.verify import verify_converted, verify_saved
from rich.console import Console

from langdc.conversion.export import export

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the new directory; 0 when it worked, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("checkpoint", help="directory of the checkpoint, or sample:langdc")
    parser.add_argument("out", type=Path, help="directory to make")
    parser.add_argument("--adapter", action="store_true", help="write the adapter as it is, for the published model")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type to store; float32 keeps all digits")
    parser.add_argument("--no-verify-save", action="store_true", help="do not load what was written again")
    options = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    try:
        made = export(options.checkpoint, options.out, options.adapter, DTYPES[options.dtype])
        for line in made.notes:
            console.print(line, markup=False, highlight=False)
        if not options.no_verify_save:
            seen = verify_converted(options.out, made.hashes)
            console.print(f"{options.out}: a fresh process loaded the same {seen.tensors} tensors and logits")
            for folder, expected in made.others.items():
                verify_saved(folder, expected)
                console.print(f"{folder}: so did one with PEFT alone", highlight=False)
    except ValueError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
