"""LangDC's release as one checkpoint of this project, with all its parts inside.

Parts are looked for where the release's own files say, around it; options name those that are elsewhere. Weights pass
through float16 and the adapter is merged, as in the authors' loader. conversion.json accounts for every tensor.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from langdc.convert.assemble import run
from langdc.convert.commands import add_part_options


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the arguments say; 0 when the directory is written."""
    parser = argparse.ArgumentParser(prog="langdc convert langdc", description=__doc__)
    add_part_options(parser)
    parser.add_argument("--captioner", type=Path, help="directory of the captioner (cap_light_llm)")
    parser.add_argument(
        "--branch", choices=("cap", "pool", "dual"), help="captions, pooled tokens, or both; default: as released"
    )
    parser.add_argument("--layer", type=int, help="hidden state that is a soft token; default: as released")
    parser.add_argument(
        "--soft-token", choices=("released", "at", "predicting"), default="released",
        help="which position's state stands for a caption token; the released weights need 'released'",
    )  # fmt: skip
    parser.add_argument("--max-soft-tokens", type=int, help="per segment; default: 128, or 256 of both branches")
    return run("langdc", parser.parse_args(argv))
