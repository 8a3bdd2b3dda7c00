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
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from langdc import checkpoint
from langdc.backbones.chat import conversation
from langdc.config import MemberConfig, ModelConfig, check, read_tree
from langdc.devices import synchronize
from langdc.interfaces import TokenCompressor
from langdc.model import VideoModel, build_compressor
from langdc.types import Frames, VideoBatch

COLUMNS = ("videos", "compressor", "tokens", "encode ms", "compress ms", "first token ms", "of the largest pool")
POOLS = {"pool, 12 x 12 and 8 x 8": [12, 8], "pool, 6 x 6 and 4 x 4": [6, 4]}
QUESTION = "What happens in this video?"


def full_size(device: str, dtype: torch.dtype) -> VideoModel:
    """The model of configs/langdc_3b, its random weights drawn on the device."""
    tree = read_tree("langdc_3b/model")["model"]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return VideoModel(check(ModelConfig, tree, "langdc_3b"))
    finally:
        torch.set_default_dtype(before)


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


@torch.no_grad()
def rows(model: VideoModel, frames: list[Frames], device: str, calls: int) -> Iterator[list[str]]:
    """Lines of the table for some videos: the largest pool first, with which the others are compared."""
    backbone, seconds = model.backbone, [video.seconds for video in frames]
    members: dict[str, TokenCompressor] = {
        name: build_compressor(check(MemberConfig, {"name": "pool", "sides": sides}, name), backbone)
        for name, sides in POOLS.items()
    }
    largest = None
    for name, member in {**members, "langdc": model.compressor}.items():
        raw = backbone.encode(frames, member.needs)
        videos = model.features(VideoBatch(raw, seconds), member.needs)
        tokens = model.compress(videos, compressor=member).tokens
        asked = backbone.prompt(conversation(QUESTION), False, videos[:1], member.frames_per_segment)
        prompts, shows = [asked] * len(frames), [(number,) for number in range(len(frames))]

        def answered(member: TokenCompressor = member, prompts: list = prompts, shows: list = shows) -> object:
            batch = VideoBatch(backbone.encode(frames, member.needs), seconds, prompts, shows)
            return model(batch, compressor=member, videos=model.features(batch, member.needs)).logits.argmax(-1)

        encode = milliseconds(lambda member=member: backbone.encode(frames, member.needs), device, calls)
        compress = milliseconds(lambda m=member, v=videos: model.compress(v, compressor=m), device, calls)
        first = milliseconds(answered, device, calls)
        largest = largest or first
        figures = [f"{each:.1f}" for each in (encode, compress, first)]
        yield [str(len(frames)), name, str(len(tokens[0])), *figures, f"{first / largest:.2f}"]


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
