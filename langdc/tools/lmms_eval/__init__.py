"""LangDC as a model of lmms-eval: `lmms-eval --model langdc --model_args pretrained=DIR,compressor=NAME,keep=0.25`."""

from typing import Any


def manifest() -> Any:
    """The entry point `lmms_eval.models`; only lmms-eval calls this."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]  # not a dependency

    return ModelManifest(model_id="langdc", simple_class_path="langdc.tools.lmms_eval.model.LangDCModel")
