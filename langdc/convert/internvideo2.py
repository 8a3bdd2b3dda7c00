"""The published training state of InternVideo2-stage2, a pickle, as a directory that `VideoEncoder` loads.

The file is read with `weights_only`. Sizes come from the tensors' shapes; the number of heads, which no shape shows,
from the width. conversion.json lists every tensor.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langdc.convert.commands import add_verify_option, check_saved, open_output, write_report
from langdc.convert.files import write_part
from langdc.convert.names import NameReport, shapes_of
from langdc.devices import TYPES
from langdc.encoders.internvideo2 import InternVideo2, InternVideo2Config
from langdc.hashing import tensor_hash
from langdc.log import screen
from langdc.modelfiles import check_complete, read_settings, read_tensors

_PREFIX = "vision_encoder."
_HEADS = {1408: 16, 3200: 25}
"""Heads of the published sizes by width: 1B and 6B."""
_DROPPED = (
    (r"vision_encoder\.(clip_decoder|final_clip_decoder|clip_projector)\.", "heads of the pre-training are not used"),
    (r"vision_encoder\.clip_(img_)?pos_embed$", "heads of the pre-training are not used"),
    (r"(vision_proj|text_proj|itm_head|mlm_head|text_encoder)\.", "the half that reads text is not used"),
    (r"(temp|logit_scale)$", "the half that reads text is not used"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the arguments say; 0 when the directory is written."""
    parser = argparse.ArgumentParser(prog="langdc convert internvideo2", description=__doc__)
    parser.add_argument("published", type=Path, help="the published .pt file")
    parser.add_argument("out", type=Path, help="directory to make")
    parser.add_argument("--heads", type=int, help="attention heads, where the width is of no published size")
    parser.add_argument("--dtype", choices=TYPES, help="type to store; default: that of the file")
    add_verify_option(parser)
    options = parser.parse_args(argv)
    with open_output(options.out) as beside:
        tensors, heads = read(options.published, options.heads)
        config, converted, report = convert(tensors, heads, TYPES.get(options.dtype))
        write_part(beside, converted, config.model_dump())
        write_report(beside, report)
    console = screen()
    console.print(*report.lines(), sep="\n")
    if not options.no_verify_save:
        hashes = {f"model.{name}": tensor_hash(tensor, torch.float32) for name, tensor in converted.items()}
        console.print(check_saved(options.out, hashes))
    return 0


def _renamed(name: str) -> str | None:
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None


def _sizes(tensors: Mapping[str, Tensor], heads: int | None = None) -> InternVideo2Config:
    """The settings that the shapes tell; ValueError where they tell none, or contradict each other."""
    needed = ("cls_token", "pos_embed", "img_pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    lacking = [f"{_PREFIX}{name}" for name in needed if name not in tensors]
    if lacking:
        raise ValueError(
            f"This is no whole InternVideo2-stage2: {len(lacking)} missing: {', '.join(lacking)}. Give the published "
            "file, or copy it again."
        )
    width, patches = tensors["cls_token"].shape[-1], tensors["img_pos_embed"].shape[1] - 1
    kernel = tuple(tensors["patch_embed.proj.weight"].shape[2:])
    side, frames = round(patches**0.5), (tensors["pos_embed"].shape[1] - 1) // max(patches, 1)
    if kernel[0] != 1 or side**2 != patches or frames * patches + 1 != tensors["pos_embed"].shape[1]:
        raise ValueError(
            f"Positions of {tensors['pos_embed'].shape[1]} patches per clip and {patches} per image with kernels of "
            f"{kernel} do not fit each other: an encoder of square frames is needed that embeds them one by one."
        )
    heads = heads if heads is not None else _HEADS.get(width)
    if heads is None:
        known = ", ".join(f"{count} at width {size}" for size, count in _HEADS.items())
        raise ValueError(
            f"No shape tells how many heads an encoder of width {width} has (published: {known}). Say it: --heads N."
        )
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide the width of {width}.")
    return InternVideo2Config(
        width=width,
        depth=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        heads=heads,
        mlp_width=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        image_size=side * kernel[1],
        patch_size=kernel[1],
        frames=frames,
    )


def convert(
    published: Mapping[str, Tensor], heads: int | None = None, dtype: torch.dtype | None = None
) -> tuple[InternVideo2Config, dict[str, Tensor], NameReport]:
    """Settings and tensors of the encoder; ValueError names all that are missing, unknown or misshapen."""
    report = NameReport.of(published, _DROPPED, _renamed)
    taken = {new: published[old] for new, old in report.taken.items()}
    config = _sizes(taken, heads)
    check_complete("InternVideo2", taken, shapes_of(lambda: InternVideo2(config)), report.unknown)
    return config, {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in taken.items()}, report


def read(source: Path, heads: int | None = None) -> tuple[dict[str, Tensor], int | None]:
    """Tensors under their published names, of a published file or of a directory made of one, and the heads."""
    if not source.is_dir():
        return read_tensors(source), heads
    settings = read_settings(source / "config.json", "to know the encoder's sizes")
    tensors = read_tensors(source / "model.safetensors")
    stated: Any = settings.get("heads", InternVideo2Config().heads)
    return {f"{_PREFIX}{name}": tensor for name, tensor in tensors.items()}, stated if heads is None else heads
