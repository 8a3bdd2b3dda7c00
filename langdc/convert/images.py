"""CLIP's vision half, as published alone or with its text half, to a directory that `ImageEncoder` loads."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from langdc.convert.files import read_folder, write_part
from langdc.convert.names import NameReport, shapes_of
from langdc.modelfiles import check_complete, read_config

_VISION = "vision_model."
_ALONE = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
"""How names of a vision half alone begin, as transformers writes them since its version 5."""
_DROPPED = (
    (r"(text_model|text_projection)\.|logit_scale$", "CLIP's text half is not used"),
    (r"visual_projection\.", "CLIP's projection to the text half is not used"),
    (r".*\.position_ids$", "position numbers are computed"),
)


def convert(
    folder: Path, source: Path, published: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[int, dict[str, Tensor], NameReport]:
    """Write CLIP's directory `folder`, from `published` tensors or else from those of the directory `source`.

    Returns the width and the tensors by the names that the loaded model gives them. ValueError names all that are
    missing, unknown or misshapen.
    """
    stated = read_config(source, "the image encoder, a CLIP directory in Hugging Face layout")
    config = getattr(stated, "vision_config", stated)
    if not isinstance(config, CLIPVisionConfig):
        raise ValueError(f"{source} is a {stated.model_type!r} model; the image encoder of these releases is a CLIP.")
    published = published or read_folder(source)
    report = NameReport.of(published, _DROPPED, _renamed)
    taken = {new: published[old] for new, old in report.taken.items()}
    shapes = shapes_of(lambda: CLIPVisionModel(config))
    expected = {_renamed(name) or name: shape for name, shape in shapes.items() if not name.endswith("position_ids")}
    check_complete("the image encoder", taken, expected, report.unknown)
    tensors = {name: tensor.to(dtype) for name, tensor in taken.items()}
    write_part(folder, tensors, {**config.to_dict(), "architectures": ["CLIPVisionModel"]})
    if (source / "preprocessor_config.json").is_file():  # with the statistics of pixels
        shutil.copyfile(source / "preprocessor_config.json", folder / "preprocessor_config.json")
    nested = any(name.startswith(_VISION) for name in shapes)
    loaded = {name if nested else name.removeprefix(_VISION): tensor for name, tensor in tensors.items()}
    return config.hidden_size, loaded, report


def _renamed(name: str) -> str | None:
    return _VISION + name.removeprefix(_VISION) if name.startswith((_VISION, *_ALONE)) else None
