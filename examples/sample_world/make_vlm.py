"""python -m examples.sample_world.make_vlm --work runs/vlm

Trains `sample:vlm`, a VideoGPT+ of the sample's encoders, a pool and a small language model that answers from pooled
tokens, and packs it as a checkpoint. First it teaches the packaged encoders varied scenes and writes them to
`--encoders`, unless that folder has them; an encoder that is interrupted starts over. The training of the language
model resumes where it was interrupted. runs/vlm/log.jsonl has accuracies by number of tokens and kind.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from examples.sample_world.make_backbones import PATCH, WIDTH, encode_frames, report
from examples.sample_world.pretrain_encoders import MOVING, STILL, Batch, ObjectReader, batches
from examples.sample_world.pretrain_encoders import pretrain as pretrain_encoder
from examples.sample_world.pretrain_vlm import SIDE, Asked, Bank, Seeing, Sight, make_bank, pretrain
from examples.sample_world.tokenizer import build_tokenizer, unsaid_vocabulary
from langdc import jsonl
from langdc.backbones.videogpt_plus import STREAMS
from langdc.checkpoint import save
from langdc.config import ModelConfig, check
from langdc.encoders.image import CLIP_MEAN, CLIP_STD, ImageEncoder
from langdc.encoders.video import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder
from langdc.sample import WEIGHTS
from langdc.sample.questions import GROUPS
from langdc.sample.scenes import FRAMES_PER_SEGMENT, LATEST, SEGMENTS, SIZE

TARGETS = {"whole": 0.90, "pool": 0.85}
"""What the mean of each group of target kinds has to reach, from 512 and from 128 tokens."""
TEST = 800
"""How many held-out segments the accuracies are measured on."""
CARD = (
    "# Sample video language model\n\nA VideoGPT+ of the sample's encoders, taught varied scenes, average pooling to "
    "4x4 tokens a frame and stream, and a Qwen2 of {layers} layers, trained on {videos} made videos with all kinds of "
    "questions, from whole and from thinned grids and from captions as words. It knows coloured shapes and nothing "
    "else. Accuracies on held-out videos, in per cent, by what is read: all 512 tokens, 128 by coarser pooling, random "
    "shares, captions.\n\n| read | {kinds} |\n|---|{rule}\n{rows}"
)


def settings(folder: Path) -> ModelConfig:
    """The model of the checkpoint in `folder`, whose parts lie in it."""
    backbone = {
        "name": "videogpt_plus",
        "language_model": f"{folder}/language_model",
        "image_encoder": {"name": "image", "source": f"{folder}/clip", "layer": -2},
        "video_encoder": {"name": "internvideo2", "source": f"{folder}/internvideo2"},
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


def package(seeing: Seeing, asked: Asked, encoders: Path, folder: Path, info: dict) -> None:
    """Write a trained model as a checkpoint that needs nothing outside its folder."""
    for name in ("clip", "internvideo2"):
        shutil.copytree(encoders / name, folder / name, dirs_exist_ok=True)
    seeing.model.config._attn_implementation = "sdpa"
    seeing.model.half().save_pretrained(folder / "language_model")
    asked.tokenizer.save_pretrained(folder / "language_model")
    side = ImageEncoder(str(folder / "clip")).side
    save(settings(folder), folder, tensors=tensors(seeing.sight, side), info=info)


def teach_encoders(folder: Path, steps: tuple[int, int], seed: int) -> None:
    """Teach both packaged encoders varied scenes, the image encoder from single frames; what is in `folder` stays."""
    image, video = (steps[0], STILL, (CLIP_MEAN, CLIP_STD)), (steps[1], MOVING, (IMAGENET_MEAN, IMAGENET_STD))
    for name, (count, fields, statistics) in {"clip": image, "internvideo2": video}.items():
        if (folder / name).is_dir():
            continue
        encoder = ImageEncoder() if name == "clip" else VideoEncoder()
        source = batches(seed, 12, SIZE // PATCH, lambda number: (4, 3, 3, 2, None, 1)[number % 6], varied=True)
        if name == "clip":
            source = map(partial(one_frame, np.random.default_rng(seed)), source)
        told = report(name)
        pretrain_encoder(
            encoder.model, encode_frames(encoder, *statistics), ObjectReader(WIDTH, fields), source, count, 2.5e-3, told
        )
        with jsonl.writing_folder(folder / name) as partial_folder:
            shutil.copytree(
                WEIGHTS / name, partial_folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.md", "card*")
            )
            tensors = {key: tensor.half().contiguous() for key, tensor in encoder.model.state_dict().items()}
            save_file(tensors, partial_folder / "model.safetensors", {"format": "pt"})


def one_frame(rng: np.random.Generator, batch: Batch) -> Batch:
    """One frame of each segment, after everything has appeared."""
    frame = [int(rng.integers(LATEST, FRAMES_PER_SEGMENT))]
    return replace(batch, pixels=batch.pixels[:, frame], cover=batch.cover[:, frame])


def bank(file: Path, encoders: Path, size: int, seed: int) -> Bank:
    """The segments in `file`, which is made where it is not there."""
    if not file.is_file():
        image, video = ImageEncoder(str(encoders / "clip")), VideoEncoder(str(encoders / "internvideo2"))
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
        f"| {layout} | {' | '.join(f'{100 * right.get(kind, 0):.0f}' for kind in kinds)} |\n"
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
    """Train as far as is left, pack, and say what is missing of the targets; 1 where something is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("--encoders", type=Path, default=Path("runs/vlm/encoders"))
    parser.add_argument(
        "--encoder-steps", type=int, nargs=2, default=(600, 1500), help="of the image and the video one"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/vlm"))
    parser.add_argument("--out", type=Path, default=WEIGHTS / "vlm")
    parser.add_argument("--segments", type=int, default=8000, help="segments that are drawn and encoded")
    parser.add_argument("--steps", type=int, default=2750)
    parser.add_argument("--size", type=int, default=12, help="videos a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--flat", action="store_true", help="leave the rate high at the end, to go on with more steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    teach_encoders(options.encoders, options.encoder_steps, options.seed + 1)
    seen = bank(options.work / "bank.pt", options.encoders, options.segments, options.seed + 1)
    test = bank(options.work / "test.pt", options.encoders, TEST, options.seed + 10**6)
    asked = Asked(build_tokenizer(unsaid_vocabulary()))
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
    package(seeing, asked, options.encoders, options.out, {"stage": "pretrained", "training": recipe})
    (options.out / "README.md").write_text(card(lines, options.layers, options.size))
    lacking = shortfalls(lines[-1]["accuracy"])
    Console().print("\n".join([f"{options.out}: written", *lacking]))
    return int(bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
