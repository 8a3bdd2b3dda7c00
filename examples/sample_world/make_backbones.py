"""python -m examples.sample_world.make_backbones --out langdc/sample/weights

Makes the sample backbones again from a seed: a small Qwen2 language model, the untrained one that the captioner
starts from, a tiny CLIP vision model and a tiny InternVideo2, each with a card that says how it was made and what it
reaches on held-out data. Takes hours on two cores (the package ships the result). One part alone: --only
language_model, captioner, clip or internvideo2.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from examples.sample_world import pretrain_encoders, pretrain_language
from examples.sample_world.tokenizer import build_tokenizer
from langdc.encoders.base import Encoder
from langdc.encoders.image import CLIP_MEAN, CLIP_STD, ImageEncoder
from langdc.encoders.video import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from langdc.sample.scenes import FRAMES_PER_SEGMENT, SIZE

PARTS = ("language_model", "captioner", "clip", "internvideo2")
WIDTH, DEPTH, HEADS, PATCH = 96, 4, 4, 8
TARGETS = {"colour": 0.99, "shape": 0.99, "motion": 0.97}
console = Console()


def report(name: str) -> Callable[[int, float, float], None]:
    """Print a line per hundred steps."""
    return lambda step, loss, seconds: console.print(f"{name}: step {step}, loss {loss:.4f}, {seconds:.0f} s")


def write_card(folder: Path, figures: dict, text: str) -> None:
    """Leave the figures as JSON and the card as Markdown."""
    (folder / "card.json").write_text(json.dumps(figures, indent=1) + "\n")
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    (folder / "README.md").write_text(f"{text}\n\n| | |\n|---|---|\n{rows}\n")


def make_language_model(folder: Path, options: argparse.Namespace) -> None:
    """Pre-train the language model on the sample's text, and measure it on fresh videos' captions."""
    tokenizer = build_tokenizer()
    model = pretrain_language.build_model(tokenizer, width=128, layers=4)
    recipe = {"steps": options.language_steps, "size": 8, "peak": 2e-3, "seed": options.seed + 1}
    pretrain_language.pretrain(model, tokenizer, **recipe, report=report("language model"))
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = pretrain_language.accuracy(model.float(), tokenizer, videos=500, seed=10**6)
    figures = {"parameters": model.num_parameters(), **recipe, **{k: round(v, 4) for k, v in found.items()}}
    write_card(
        folder,
        figures,
        "# Sample language model\n\nA Qwen2 of 4 layers that has read only the sample's language: captions of coloured "
        "shapes and questions about them. It stands in for a real language model in tests and on a laptop; it knows "
        "nothing else. Accuracies: share of replies exactly right on 500 fresh videos, from their captions as text.",
    )


def make_captioner(folder: Path, options: argparse.Namespace) -> None:
    """Draw the weights that the sample captioner starts from."""
    tokenizer = build_tokenizer()
    model = pretrain_language.build_model(tokenizer, width=128, layers=4, spread=0.05, strength=4.0)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(
        folder,
        {"parameters": model.num_parameters(), "seed": options.seed, "steps": 0},
        "# Sample captioner, untrained\n\nThe weights that the sample captioner starts from: a Qwen2 of 4 layers, "
        "drawn at random. Two heads of its first layer begin by attending one and two tokens back, which a model that "
        "has read text can do and a fresh one takes long to find. It stands in for Qwen2.5-0.5B.",
    )


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels 0..255 [...,3,height,width] as an encoder takes them."""
    return (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def encode_frames(encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Pixels of segments [B,T,3,size,size] to grids [B,T,H,W,C], with gradients."""

    def encode(pixels: Tensor) -> Tensor:
        frames = normalise(pixels, mean, std).flatten(0, 1)
        return encoder.run(frames, [pixels.shape[1]] * len(pixels)).unflatten(0, pixels.shape[:2])

    return encode


def train_encoder(encode: Callable, model: nn.Module, fields: tuple[str, ...], steps: int, seed: int) -> dict:
    """Pre-train an encoder with readers for `fields`; its figures on held-out scenes of four objects."""
    reader = pretrain_encoders.ObjectReader(WIDTH, fields)
    source = pretrain_encoders.batches(seed + 1, 16, SIZE // PATCH, lambda _: None)
    pretrain_encoders.pretrain(model, encode, reader, source, steps, 1.5e-3, report(type(model).__name__))
    found = pretrain_encoders.linear_probe(encode, fields, SIZE // PATCH, seed + 10**6)
    for field, reached in found.items():
        if reached < TARGETS[field]:
            console.print(f"{field}: {reached:.4f} is below the target of {TARGETS[field]}", style="red")
    return {"steps": steps, "seed": seed + 1, **{field: round(value, 4) for field, value in found.items()}}


def make_clip(folder: Path, options: argparse.Namespace) -> None:
    """Pre-train the image encoder on single frames."""
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
    figures = train_encoder(encode, encoder.model, ("colour", "shape"), options.image_steps, options.seed)
    encoder.model.half().save_pretrained(folder)
    write_card(
        folder, figures, "# Sample image encoder\n\n" + ENCODER_TEXT.format("CLIP vision model", "single frames")
    )


def make_internvideo2(folder: Path, options: argparse.Namespace) -> None:
    """Pre-train the video encoder on segments of four frames."""
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "mlp_width": 4 * WIDTH, "init_scale": 0.1}
    config = {**sizes, "image_size": SIZE, "patch_size": PATCH, "frames": FRAMES_PER_SEGMENT}
    encoder = VideoEncoder({"config": config, "init": "random"})
    encode = encode_frames(encoder, IMAGENET_MEAN, IMAGENET_STD)
    figures = train_encoder(encode, encoder.model, ("colour", "shape", "motion"), options.video_steps, options.seed)
    table = encoder.model.pos_embed.data
    images = table[:, 1:].unflatten(1, (FRAMES_PER_SEGMENT, -1)).mean(1)  # trained on clips alone: their mean over time
    encoder.model.img_pos_embed.data.copy_(torch.cat([table[:, :1], images], dim=1))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(
        {name: t.half().contiguous() for name, t in encoder.model.state_dict().items()}, folder / "model.safetensors"
    )
    write_card(
        folder, figures, "# Sample video encoder\n\n" + ENCODER_TEXT.format("InternVideo2", "segments of 4 frames")
    )


ENCODER_TEXT = (
    "A tiny {} trained on {} of the sample's scenes with 0 to 4 objects, supervised per object region at the layer "
    "that is used downstream (before the last block, which stays as initialised). Figures: share of objects whose "
    "colour, shape (and motion) a linear map, fitted by least squares on other scenes, reads right from the mean patch "
    "vector under the object, on held-out scenes of four objects."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the parts that were asked for."""
    parser = argparse.ArgumentParser(
        prog="examples.sample_world.make_backbones", description=(__doc__ or "").partition("\n")[2].strip()
    )
    parser.add_argument("--out", type=Path, default=Path("langdc/sample/weights"))
    parser.add_argument("--only", choices=PARTS, help="make one part alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--language-steps", type=int, default=10000)
    parser.add_argument("--image-steps", type=int, default=2500)
    parser.add_argument("--video-steps", type=int, default=6500)
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
