"""`langdc config-schema`: the JSON schema of config files, which editors complete and check keys by."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from langdc.config import RunConfig


class _Partial(GenerateJsonSchema):
    def field_is_required(self, *_: Any, **__: Any) -> bool:
        return False


def schema(kind: type[BaseModel] = RunConfig) -> dict[str, Any]:
    """A JSON schema of config files, for editors. A file may be extended, so no key is required in it."""
    tree = kind.model_json_schema(schema_generator=_Partial)
    extends = {"type": "string", "description": "A file that this one is laid over."}
    tree["properties"] = {"extends": extends, **tree["properties"]}
    definitions = tree.pop("$defs")
    chain = {"type": "array", "items": {"type": "string"}, "description": "Config files, run in this order."}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"LangDC: {kind.__name__}"}
    return {**head, "anyOf": [tree, chain], "$defs": definitions}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the schema of a training config (configs/schema.json is a copy), or of an evaluation's."""
    parser = argparse.ArgumentParser(prog="langdc config-schema", description=__doc__)
    parser.add_argument("--eval", action="store_true", help="of an evaluation's config (default: a training's)")
    kind: type[BaseModel] = RunConfig
    if parser.parse_args(argv).eval:
        from langdc.evaluate.settings import EvalConfig as kind  # takes longer to import
    print(json.dumps(schema(kind), indent=1))
    return 0
