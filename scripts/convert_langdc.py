"""python scripts/convert_langdc.py LangDC/langdc_lora langdc-3b --language Qwen2.5-3B-Instruct

Turns LangDC's release into one checkpoint of this project, with all its parts inside. Parts are looked for where the
release's own files say, around it; options name those that lie elsewhere. Weights pass through float16 and the adapter
is merged, as the authors' loader does. Every tensor is accounted for in conversion.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from langdc.conversion.commands import add_part_options, given_parts, run
from langdc.conversion.videogpt import Options


def main(argv: Sequence[str] | None = None) -> int:
    """Write the new directory; 0 when it worked, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("release", type=Path, help="directory of the release, or the one above it")
    parser.add_argument("out", type=Path, help="directory to make")
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
    options = parser.parse_args(argv)
    chosen = Options(
        **given_parts(options),
        captioner=options.captioner,
        branch=options.branch,
        layer=options.layer,
        soft_token=options.soft_token,
        max_soft_tokens=options.max_soft_tokens,
    )
    return run("langdc", options.release, options.out, chosen, verify=not options.no_verify_save)


if __name__ == "__main__":
    sys.exit(main())
