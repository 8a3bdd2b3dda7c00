"""python -m examples.sample_world.make_encoders --out langdc/sample/weights

Makes the sample encoders from a seed: a tiny CLIP vision model and a tiny InternVideo2, trained on plain scenes and
then on varied ones, each with a card that says how it was made and what it reaches on held-out scenes. Takes hours on
two cores (the package ships the result). One part alone: --only clip or internvideo2.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from examples.sample_world.pretrain_encoders import (
    MOVING,
    STILL,
    Batch,
    ObjectReader,
    batches,
    linear_probe,
    pretrain,
)
from langdc.encoders.base import Encoder
from langdc.encoders.image import CLIP_MEAN, CLIP_STD, ImageEncoder
from langdc.encoders.video import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from langdc.sample import WEIGHTS
from langdc.sample.scenes import FRAMES_PER_SEGMENT, LATEST, SIZE

PARTS = ("clip", "internvideo2")
WIDTH, DEPTH, HEADS, PATCH = 96, 4, 4, 8
STEPS = "number of steps on plain and on varied scenes"
TARGETS = {"colour": 0.99, "shape": 0.99, "radius": 0.67, "column": 0.92, "row": 0.92, "motion": 0.84, "start": 0.99}
"""The least accuracy that `measure` has to find."""
HELD_OUT = 4_000_000
"""The seed of the scenes that are measured on."""
CARD = (
    "# Sample {title} encoder\n\nA tiny {class_name} trained on {shown} of the sample's scenes with 0 to 4 objects, "
    "first on plain ones, then on varied ones, supervised per object region at the layer that is used downstream "
    "(before the last block, which stays as initialised). Figures: the share of 1,024 objects, on held-out scenes of "
    "four, of which a linear map, fitted by least squares on other scenes, reads a field right from the mean patch "
    "vector under the object. Radius is one of five; column and row are quarters of the picture. "
    "`tests/sample/test_backbones.py` measures them again."
)
console = Console()


def report(name: str) -> Callable[[int, float, float], None]:
    """Print a line per hundred steps."""
    return lambda step, loss, seconds: console.print(f"{name}: step {step}, loss {loss:.4f}, {seconds:.0f} s")


def write_card(folder: Path, title: str, class_name: str, shown: str, figures: dict) -> None:
    """Write README.md: an encoder's `CARD` and figures."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    text = CARD.format(title=title, class_name=class_name, shown=shown)
    (folder / "README.md").write_text(f"{text}\n\n| | |\n|---|---|\n{rows}\n")


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels 0..255 [...,3,height,width] as an encoder takes them."""
    return (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def encode_frames(encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Pixels of segments [B,T,3,size,size] to grids [B,T,H,W,C], with gradients."""

    def encode(pixels: Tensor) -> Tensor:
        frames = normalise(pixels, mean, std).flatten(0, 1)
        return encoder.run(frames, [pixels.shape[1]] * len(pixels)).unflatten(0, pixels.shape[:2])

    return encode


def train_plain(encode: Callable, model: nn.Module, fields: tuple[str, ...], steps: int, seed: int) -> None:
    """Train an encoder on plain scenes of 0 to 4 objects."""
    reader = ObjectReader(WIDTH, fields)
    source = batches(seed, 16, SIZE // PATCH, lambda _: None, varied=False)
    pretrain(model, encode, reader, source, steps, 1.5e-3, report(type(model).__name__))


def teach(encode: Callable, model: nn.Module, fields: tuple[str, ...], steps: int, seed: int) -> None:
    """Teach an encoder varied scenes, most of them full; with `STILL`, from single frames."""
    reader = ObjectReader(WIDTH, fields)
    source = batches(seed, 12, SIZE // PATCH, lambda number: (4, 3, 3, 2, None, 1)[number % 6])
    if fields == STILL:
        source = map(partial(one_frame, np.random.default_rng(seed)), source)
    pretrain(model, encode, reader, source, steps, 2.5e-3, report(type(model).__name__))


def measure(encode: Callable, fields: tuple[str, ...]) -> dict[str, float]:
    """The accuracy of linear maps for each field on held-out scenes of four objects; prints what misses its target."""
    found = linear_probe(encode, fields, SIZE // PATCH, HELD_OUT)
    for field in fields:
        if found[field] < TARGETS[field]:
            console.print(f"{field}: {found[field]:.4f} is below the target of {TARGETS[field]}", style="red")
    return {field: round(value, 4) for field, value in found.items()}


def one_frame(rng: np.random.Generator, batch: Batch) -> Batch:
    """One frame of each segment, after everything has appeared."""
    frame = [int(rng.integers(LATEST, FRAMES_PER_SEGMENT))]
    return replace(batch, pixels=batch.pixels[:, frame], cover=batch.cover[:, frame])


def make_clip(folder: Path, options: argparse.Namespace) -> None:
    """Train the image encoder."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE).save_pretrained(folder)
    encoder = ImageEncoder(str(folder))
    encode = encode_frames(encoder, CLIP_MEAN, CLIP_STD)
    plain, varied = options.image_steps
    train_plain(encode, encoder.model, ("colour", "shape"), plain, options.seed + 1)
    teach(encode, encoder.model, STILL, varied, options.seed + 1)
    figures = {"plain steps": plain, "varied steps": varied, "seed": options.seed, **measure(encode, STILL)}
    encoder.model.half().save_pretrained(folder)
    write_card(folder, "image", "CLIP vision model", "single frames", figures)


def make_internvideo2(folder: Path, options: argparse.Namespace) -> None:
    """Train the video encoder."""
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "mlp_width": 4 * WIDTH, "init_scale": 0.1}
    config = {**sizes, "image_size": SIZE, "patch_size": PATCH, "frames": FRAMES_PER_SEGMENT}
    encoder = VideoEncoder({"config": config, "init": "random"})
    encode = encode_frames(encoder, IMAGENET_MEAN, IMAGENET_STD)
    plain, varied = options.video_steps
    train_plain(encode, encoder.model, ("colour", "shape", "motion"), plain, options.seed + 1)
    teach(encode, encoder.model, MOVING, varied, options.seed + 1)
    figures = {"plain steps": plain, "varied steps": varied, "seed": options.seed, **measure(encode, MOVING)}
    table = encoder.model.pos_embed.data
    images = table[:, 1:].unflatten(1, (FRAMES_PER_SEGMENT, -1)).mean(1)  # trained on clips alone: their mean over time
    encoder.model.img_pos_embed.data.copy_(torch.cat([table[:, :1], images], dim=1))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(
        {name: t.half().contiguous() for name, t in encoder.model.state_dict().items()}, folder / "model.safetensors"
    )
    write_card(folder, "video", "InternVideo2", "segments of 4 frames", figures)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the parts that were asked for."""
    parser = argparse.ArgumentParser(
        prog="examples.sample_world.make_encoders", description=(__doc__ or "").partition("\n")[2].strip()
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--only", choices=PARTS, help="make one part alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-steps", type=int, nargs=2, default=(2500, 600), help=STEPS)
    parser.add_argument("--video-steps", type=int, nargs=2, default=(6500, 1500), help=STEPS)
    options = parser.parse_args(argv)
    for part in [options.only] if options.only else PARTS:
        torch.manual_seed(options.seed)
        folder = options.out / part
        folder.mkdir(parents=True, exist_ok=True)
        globals()[f"make_{part}"](folder, options)
        console.print(f"{part}: written to {folder} on {datetime.now(UTC):%Y-%m-%d}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
