"""python benchmarks/decode.py [FILE ...] [--frames 16] [--size 224 224] [--threads 1 8] [--out docs/benchmarks.md]

Milliseconds that PyAV, torchcodec and decord take to read frames of a video, of files given or of four that it writes,
and by how many of 255 levels they differ from frames that were decoded in order. "first": with the index of the file,
which is then kept; "again": without it, the median of --calls; "CPU": all threads together.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from langdc import decoders, video
from langdc.types import Frames

COLUMNS = ("video", "decoder", "threads", "first ms", "again ms", "CPU ms", "of PyAV", "levels")
WRITTEN = {  # seconds, height, width, frames between key frames
    "640x360, 10 s, key frames every 250": (10, 360, 640, 250),
    "640x360, 60 s, key frames every 60": (60, 360, 640, 60),
    "1920x1080, 4 s, key frames every 250": (4, 1080, 1920, 250),
    "160x120, 4 s, key frames every 12": (4, 120, 160, 12),
}
RATE = 30


def write(path: Path, seconds: int, height: int, width: int, group: int) -> Path:
    """An H.264 file of a texture that moves, with noise; two frames in three refer to frames behind them."""
    dice = np.random.default_rng(0)
    coarse = torch.from_numpy(dice.random((1, 3, height // 8, width // 8), np.float32))
    wide = torch.nn.functional.interpolate(coarse, (height, 2 * width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    noise = dice.integers(-6, 7, (8, height, width, 3))
    options = {"preset": "veryfast", "crf": "23", "g": str(group), "bf": "3"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(seconds * RATE):
            shift = 2 * number % width
            image = (255 * wide[:, shift : shift + width] + noise[number % 8]).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def in_order(path: Path, frames: int, size: tuple[int, int] | None) -> Frames:
    """The same frames by decoding the file from its start and counting."""
    with decoders.opened(path) as opened:
        times = opened.index.times
        wanted = video._uniform_indices(len(times), frames)
        counted = replace(opened, index=replace(opened.index, places=None))
        images = dict(zip(sorted(set(wanted)), decoders.decoder_of("pyav")(counted, sorted(set(wanted))), strict=True))
    pixels = torch.stack([video._resize(images[number], size, "bicubic") for number in wanted])
    return Frames(pixels, torch.tensor([times[number] for number in wanted]))


def rows(
    name: str, path: Path, frames: int, size: tuple[int, int] | None, threads: int, calls: int
) -> Iterator[list[str]]:
    """Lines of the table for a file, PyAV first; why a decoder cannot read it is said in its line."""
    torch.set_num_threads(threads)
    expected, base = in_order(path, frames, size), None
    for decoder in decoders.DECODERS:
        begin = [name, decoder, str(threads)]
        trouble, found, took, cpu = decoders.decoder_trouble(decoder), expected, [], []
        if trouble:
            yield [*begin, f"not installed: {trouble.partition('.')[0]}", "", "", "", ""]
            continue
        decoders._indices.clear()
        try:
            for _ in range(calls + 1):
                started, used = time.perf_counter(), time.process_time()
                found = video.read_frames(path, frames=frames, size=size, resample="bicubic", decoder=decoder)
                took.append((time.perf_counter() - started) * 1e3)
                cpu.append((time.process_time() - used) * 1e3)
        except ValueError as error:
            yield [*begin, str(error).partition(": ")[2], "", "", "", ""]
            continue
        again = median(took[1:])
        base = base or again
        levels = (found.pixels.int() - expected.pixels.int()).abs().max().item()
        numbers = [f"{value:.1f}" for value in (took[0], again, median(cpu[1:]))]
        yield [*begin, *numbers, f"{again / base:.2f}", f"{levels}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and, if asked to, write the page; 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("files", nargs="*", type=Path, help="videos; by default some that are written")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", nargs=2, type=int, help="height and width to resize to")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, torch.get_num_threads()])
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    args = parser.parse_args(argv)
    before, size = torch.get_num_threads(), tuple(args.size) if args.size else None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(torch.set_num_threads, before)
        files = {file.name: file for file in args.files} or {
            name: write(folder / f"{number}.mp4", *made) for number, (name, made) in enumerate(WRITTEN.items())
        }
        found = report.follow(
            row
            for name, path in files.items()
            for threads in sorted(set(args.threads))
            for row in rows(name, path, args.frames, size, threads, args.calls)
        )
    head = f"{report.command(__file__, argv)} on {report.machine('cpu')}; {args.frames} frames, PyAV {av.__version__}."
    report.show(COLUMNS, found, head)
    if args.out:
        report.write(args.out, "Decoding of videos", head, COLUMNS, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
