"""`langdc config-schema`: the JSON schema of config files, which editors complete and check keys by."""

import argparse
import json
from collections.abc import Sequence

from pydantic import BaseModel

from langdc.config import RunConfig, schema


def main(argv: Sequence[str] | None = None) -> int:
    """Print the schema of a training config (configs/schema.json is a copy), or of an evaluation's."""
    parser = argparse.ArgumentParser(prog="langdc config-schema", description=__doc__)
    parser.add_argument("--eval", action="store_true", help="of an evaluation's config (default: a training's)")
    kind: type[BaseModel] = RunConfig
    if parser.parse_args(argv).eval:
        from langdc.evaluate.settings import EvalConfig as kind  # takes longer to import
    print(json.dumps(schema(kind), indent=1))
    return 0
