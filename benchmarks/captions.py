"""python benchmarks/captions.py [--videos 1 8] [--device cuda --dtype bfloat16] [--compiled] [--out docs/benchmarks.md]

Milliseconds from frames to the first token for LangDC and for average pools on one backbone: the sizes of
configs/langdc_3b with random weights, or a checkpoint of LangDC (--model). Captions have --tokens tokens, since no end
token is ever chosen. Decoding of the files is left out. Random weights say nothing about answers.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from langdc import checkpoint
from langdc.backbones.chat import conversation
from langdc.config import MemberConfig, ModelConfig, check
from langdc.configfiles import read_tree
from langdc.devices import making, synchronize
from langdc.interfaces import TokenCompressor
from langdc.model import VideoModel, build_compressor
from langdc.types import Frames, VideoBatch

COLUMNS = ("videos", "compressor", "tokens", "encode ms", "compress ms", "first token ms", "of the largest pool")
POOLS = {"pool, 12 x 12 and 8 x 8": [12, 8], "pool, 6 x 6 and 4 x 4": [6, 4]}
QUESTION = "What happens in this video?"


def full_size(device: str, dtype: torch.dtype, name: str = "langdc_3b") -> VideoModel:
    """The model of configs/NAME, its random weights drawn on the device."""
    tree = read_tree(f"{name}/model")["model"]
    with making(torch.device(device), dtype):
        return VideoModel(check(ModelConfig, tree, name))


def frames_of(model: VideoModel, videos: int, side: int) -> list[Frames]:
    """Videos of random pixels, on the model's device."""
    count = model.backbone.segments * model.backbone.frames_per_segment
    dice = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (videos, count, 3, side, side), generator=dice, dtype=torch.uint8).to(model.device)
    return [Frames(each, torch.arange(count).double()) for each in pixels]


def milliseconds(work: Callable[[], object], device: str, calls: int) -> float:
    """The median of `calls` calls, after two that are not counted: the first one records the steps."""
    found = []
    for _ in range(calls + 2):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        found.append((time.perf_counter() - started) * 1e3)
    return median(found[2:])


class Times(NamedTuple):
    """Milliseconds of a batch of videos: encoding, compressing, and all to the first token; `tokens` of a video."""

    tokens: int
    encode: float
    compress: float
    first: float


@torch.no_grad()
def times(model: VideoModel, member: TokenCompressor, frames: list[Frames], device: str, calls: int) -> Times:
    """Of one compressor, each the median of `calls` calls."""
    backbone, seconds = model.backbone, [video.seconds for video in frames]
    raw = backbone.encode(frames, member.needs)
    videos = model.features(VideoBatch(raw, seconds), member.needs)
    tokens = model.compress(videos, compressor=member).tokens
    asked = backbone.prompt(conversation(QUESTION), False, videos[:1], member.frames_per_segment)
    prompts, shows = [asked] * len(frames), [(number,) for number in range(len(frames))]

    def answered() -> object:
        batch = VideoBatch(backbone.encode(frames, member.needs), seconds, prompts, shows)
        return model(batch, compressor=member, videos=model.features(batch, member.needs)).logits.argmax(-1)

    encode = milliseconds(lambda: backbone.encode(frames, member.needs), device, calls)
    compress = milliseconds(lambda: model.compress(videos, compressor=member), device, calls)
    return Times(len(tokens[0]), encode, compress, milliseconds(answered, device, calls))


def rows(model: VideoModel, frames: list[Frames], device: str, calls: int) -> Iterator[list[str]]:
    """Lines of the table for some videos: the largest pool first, with which the others are compared."""
    members: dict[str, TokenCompressor] = {
        name: build_compressor(check(MemberConfig, {"name": "pool", "sides": sides}, name), model.backbone)
        for name, sides in POOLS.items()
    }
    largest = None
    for name, member in {**members, "langdc": model.compressor}.items():
        found = times(model, member, frames, device, calls)
        largest = largest or found.first
        figures = [f"{each:.1f}" for each in (found.encode, found.compress, found.first)]
        yield [str(len(frames)), name, str(found.tokens), *figures, f"{found.first / largest:.2f}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and, with --out, write the table."""
    parser = report.arguments(__doc__, [])
    parser.add_argument("--videos", nargs="+", type=int, default=[1, 8], help="videos of a batch")
    parser.add_argument("--model", help="a checkpoint of LangDC in place of random weights, such as sample:langdc")
    parser.add_argument("--tokens", type=int, default=59, help="tokens of a caption")
    parser.add_argument("--side", type=int, default=336, help="height and width of the frames")
    parser.add_argument("--calls", type=int, default=5, help="calls of which the median is taken")
    parser.add_argument("--compiled", action="store_true", help="compile the steps of the captioner (CUDA)")
    options = parser.parse_args(argv)
    dtype = getattr(torch, options.dtype)
    model = checkpoint.load(options.model) if options.model else full_size(options.device, dtype)
    model = model.to(options.device).to(dtype).eval().requires_grad_(False)
    captioner: Any = model.compressor.captioner
    captioner.end, captioner.max_soft_tokens, captioner.compiled = [-1], options.tokens, options.compiled
    found = []
    for count in options.videos:
        found += report.follow(rows(model, frames_of(model, count, options.side), options.device, options.calls))
    head = f"{report.command(__file__, argv)} on {report.machine(options.device)}."
    report.show(COLUMNS, found, head)
    if options.out:
        title = f"First token of LangDC and of pools, {options.device}, {options.dtype}"
        report.write(options.out, title, head, COLUMNS, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
