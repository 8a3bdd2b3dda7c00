"""python -m examples.sample_world.make_vlm --work runs/vlm

Trains `sample:vlm`, a VideoGPT+ of the packaged encoders, a pool and a small language model that answers from pooled
tokens and from words, and packs it: `sample:language_model`, and a checkpoint that names it and the encoders. The
training resumes where it was interrupted. runs/vlm/log.jsonl has accuracies by number of tokens and kind.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from examples.sample_world.make_encoders import encode_frames
from examples.sample_world.pretrain_vlm import SIDE, Asked, Bank, Seeing, Sight, make_bank, pretrain
from examples.sample_world.tokenizer import build_tokenizer
from langdc import jsonl
from langdc.backbones.videogpt_plus import STREAMS
from langdc.checkpoint import save
from langdc.config import ModelConfig, check
from langdc.encoders.image import CLIP_MEAN, CLIP_STD, ImageEncoder
from langdc.encoders.video import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from langdc.sample import WEIGHTS
from langdc.sample.questions import GROUPS
from langdc.sample.scenes import FRAMES_PER_SEGMENT, SEGMENTS

TARGETS = {"whole": 0.90, "pool": 0.85}
"""What the mean of each group of target kinds has to reach, from 512 and from 128 tokens."""
TEST = 800
"""How many held-out segments the accuracies are measured on."""
CARD = (
    "# Sample video language model\n\nA VideoGPT+ of the sample's encoders, average pooling to 4x4 tokens a frame and "
    "stream, and `sample:language_model`, a Qwen2 of {layers} layers, trained on {videos} made videos with all kinds "
    "of questions, from whole and from thinned grids and from captions as words. It knows coloured shapes and nothing "
    "else. Accuracies on held-out videos, in per cent, by what is read: all 512 tokens, 128 by coarser pooling, random "
    "shares, captions; -: not asked.\n\n| read | {kinds} |\n|---|{rule}\n{rows}"
)
LANGUAGE_CARD = (
    "# Sample language model\n\nThe language model of `sample:vlm`, a Qwen2 that reads the sample's pooled tokens and "
    "captions. It stands in for a real language model in tests and on a laptop. Accuracies: the card of `sample:vlm`.\n"
)


def settings(language_model: str) -> ModelConfig:
    """The model of the checkpoint."""
    backbone = {
        "name": "videogpt_plus",
        "language_model": language_model,
        "image_encoder": {"name": "image", "source": "sample:clip", "layer": -2},
        "video_encoder": {"name": "internvideo2", "source": "sample:internvideo2"},
        "segments": SEGMENTS,
        "frames_per_segment": FRAMES_PER_SEGMENT,
        "projector": "linear",
        "places": True,
    }
    return check(ModelConfig, {"backbone": backbone, "compressor": {"name": "pool", "sides": [SIDE, SIDE]}}, "model")


def tensors(sight: Sight, side: int) -> dict[str, Tensor]:
    """The tensors of a backbone whose pooled tokens are those of `sight`; its encoders see `side` x `side` patches."""
    found = {}
    for stream, projector in zip(STREAMS, sight.projectors, strict=True):
        found |= {f"backbone.projectors.{stream}.{name}": value for name, value in projector.state_dict().items()}
        for name, table in sight.places.items():
            wide = table if name == "step" else table.repeat_interleave(side // SIDE, 0)
            found[f"backbone.places.{stream}.{name}.weight"] = wide
    return {name: value.detach().half() for name, value in found.items()}


def package(seeing: Seeing, asked: Asked, folder: Path, info: dict) -> None:
    """Write a trained model as `folder`/language_model and the checkpoint `folder`/vlm."""
    words = folder / "language_model"
    seeing.model.config._attn_implementation = "sdpa"
    seeing.model.half().save_pretrained(words)
    asked.tokenizer.save_pretrained(words)
    (words / "README.md").write_text(LANGUAGE_CARD)
    name = "sample:language_model" if folder.samefile(WEIGHTS) else str(words.resolve())
    save(settings(name), folder / "vlm", tensors=tensors(seeing.sight, ImageEncoder().side), info=info)


def bank(file: Path, size: int, seed: int) -> Bank:
    """The segments in `file`, which is made where it is not there."""
    if not file.is_file():
        image, video = ImageEncoder(), VideoEncoder()
        encode = encode_frames(image, CLIP_MEAN, CLIP_STD), encode_frames(video, IMAGENET_MEAN, IMAGENET_STD)
        made = make_bank(encode, size, seed)
        with jsonl.writing(file) as partial:
            torch.save((made.segments, made.features), partial)
    return Bank(*torch.load(file, weights_only=False))


def card(lines: list[dict], layers: int, size: int) -> str:
    """The card of a model by the log of its training."""
    found = lines[-1]["accuracy"]
    kinds = list(found["whole"])
    rows = [
        f"| {layout} | {' | '.join(f'{100 * right[kind]:.0f}' if kind in right else '-' for kind in kinds)} |\n"
        for layout, right in found.items()
    ]
    videos = lines[-1]["step"] * size
    return CARD.format(
        layers=layers, videos=videos, kinds=" | ".join(kinds), rule="---|" * len(kinds), rows="".join(rows)
    )


def shortfalls(found: dict[str, dict[str, float]]) -> list[str]:
    """Which groups of kinds stay below `TARGETS`, in words."""
    return [
        f"{group} from {layout}: {100 * mean:.1f} %, wanted {100 * wanted:.0f} %"
        for layout, wanted in TARGETS.items()
        for group, kinds in GROUPS.items()
        if (mean := sum(found[layout].get(kind, 0.0) for kind in kinds) / len(kinds)) < wanted
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Train to the last step, package the model, and name the targets that it misses; 1 if there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("--work", type=Path, default=Path("runs/vlm"))
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--segments", type=int, default=8000, help="segments that are drawn and encoded")
    parser.add_argument("--steps", type=int, default=2750)
    parser.add_argument("--size", type=int, default=12, help="videos a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--flat", action="store_true", help="no decay, no noise: to continue with more steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    seen = bank(options.work / "bank.pt", options.segments, options.seed + 1)
    test = bank(options.work / "test.pt", TEST, options.seed + 10**6)
    asked = Asked(build_tokenizer())
    seeing = Seeing(asked.tokenizer, seen, options.width, options.layers)
    recipe = {
        "steps": options.steps,
        "size": options.size,
        "peak": options.rate,
        "seed": options.seed,
        "flat": options.flat,
    }
    pretrain(seeing, asked, seen, test, options.work, **recipe)
    lines = [json.loads(line) for line in (options.work / "log.jsonl").read_text().splitlines()]
    package(seeing, asked, options.out, {"stage": "pretrained", "training": recipe})
    (options.out / "vlm" / "README.md").write_text(card(lines, options.layers, options.size))
    lacking = shortfalls(lines[-1]["accuracy"])
    Console().print("\n".join([f"{options.out / 'vlm'}: written", *lacking]))
    return int(bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
