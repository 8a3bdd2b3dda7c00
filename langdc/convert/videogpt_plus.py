"""VideoGPT+'s release, an adapter and projectors, as one checkpoint of this project with all its parts inside.

Parts are looked for where the release's own files say, around it; options name those that are elsewhere. Weights pass
through float16 and the adapter is merged, as in the authors' loader. conversion.json accounts for every tensor.
"""

import argparse
from collections.abc import Sequence

from langdc.convert.assemble import run
from langdc.convert.commands import add_part_options


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the arguments say; 0 when the directory is written."""
    parser = argparse.ArgumentParser(prog="langdc convert videogpt_plus", description=__doc__)
    add_part_options(parser)
    return run("videogpt_plus", parser.parse_args(argv))
