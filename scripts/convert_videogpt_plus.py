"""python scripts/convert_videogpt_plus.py VideoGPT-plus_Phi3-mini-4k/mvbench videogpt-plus --language Phi-3-mini-4k

Turns VideoGPT+'s release, an adapter and projectors, into one checkpoint of this project, with all its parts inside.
Parts are looked for where the release's own files say, around it; options name those that lie elsewhere. Weights pass
through float16 and the adapter is merged, as the authors' loader does. conversion.json accounts for every tensor.
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
    parser.add_argument("release", type=Path, help="directory of the release")
    parser.add_argument("out", type=Path, help="directory to make")
    add_part_options(parser)
    options = parser.parse_args(argv)
    chosen = Options(**given_parts(options))
    return run("videogpt_plus", options.release, options.out, chosen, verify=not options.no_verify_save)


if __name__ == "__main__":
    sys.exit(main())
