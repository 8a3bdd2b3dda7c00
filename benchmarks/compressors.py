"""python benchmarks/compressors.py [--frames 32 128 1024] [--device cuda --dtype bfloat16] [--out docs/benchmarks.md]

Time each method against `benchmarks/reference.py`, in the same process on the same inputs, and measure the extra memory
of both: the highest sum of live tensor storage above what was there before (on CUDA, of allocated memory). The
reference computes in float32 as published code does; times are the best of several runs, after one that is not counted.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import reference, report
from benchmarks.memory import most_live_bytes
from langdc import compressors
from langdc.attention import received_attention
from langdc.devices import peak_bytes, reset_peak, synchronize
from langdc.types import FeatureGrid, VideoFeatures

PLACES, WIDTH, KEEP = 196, 3584, 0.25
HEADS, KEY_HEADS, HEAD_WIDTH, PROMPT = 28, 4, 128, 64
QUESTION = 20
OTHERS = ("dycoke", "evs", "visionzip", "fastvid", "holitom_outer", "flashvid", "cdpruner")
SECONDS, MOST_RUNS = 2.0, 9


@dataclass(frozen=True)
class Case:
    """One method on one shape: the `reference`, None where there is none of ours, and `ours`."""

    method: str
    shape: str
    reference: Callable[[], object] | None
    ours: Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """Seconds and extra bytes of one case."""

    case: Case
    reference: tuple[float, int] | None
    ours: tuple[float, int]

    def cells(self) -> list[str]:
        """A line of the table."""
        seconds, extra = self.ours
        own = [f"{seconds:.3f}", f"{extra / 2**20:.0f}"]
        if self.reference is None:
            return [self.case.method, self.case.shape, "-", own[0], "-", "-", own[1], "-"]
        before, memory = self.reference
        faster, less = f"{before / seconds:.1f}x", f"1/{memory / max(extra, 1):.1f}"
        cells = [f"{before:.3f}", own[0], faster, f"{memory / 2**20:.0f}", own[1], less]
        return [self.case.method, self.case.shape, *cells]


NOTE = (
    f"A share of {KEEP} is kept unless the shape says otherwise; times include copying what is kept. Shapes of videos: "
    "frames x places x width."
)
COLUMNS = ("method", "shape", "reference s", "ours s", "faster", "reference MiB", "ours MiB", "memory")


def video(frames: int, places: int, width: int, device: str, dtype: torch.dtype) -> VideoFeatures:
    """Features of a video that changes slowly, with a cut now and then, and a question."""
    dice = torch.Generator().manual_seed(0)
    values = torch.randn(frames, places, width, generator=dice)
    for frame in range(1, frames):
        if frame % 16:
            values[frame] = 0.9 * values[frame - 1] + 0.44 * values[frame]
    grid = FeatureGrid(values.to(device, dtype)[:, None])
    question = torch.randn(QUESTION, width, generator=dice).to(device, dtype)
    return VideoFeatures((grid,), {}, torch.arange(frames) / 2, question)


def token_cases(
    frames: int, device: str, dtype: torch.dtype, width: int = WIDTH, places: int = PLACES
) -> Iterator[Case]:
    """The token compressors on `frames` frames."""
    shape = f"{frames} x {places} x {width}"
    features = video(frames, places, width, device, dtype)
    values = features.projected[0].values[:, 0]
    wide = values.float() if dtype != torch.float32 else values
    method = compressors.build("vidcom2", keep=KEEP, variant="released")
    yield Case("vidcom2", shape, lambda: reference.vidcom2(wide, KEEP), lambda: method.one(features))
    few = max(1, round(KEEP * frames))
    select = compressors.build("dpselect", tokens=few * places, per="patch")
    yield Case("dpselect, patches", shape, lambda: reference.dpselect(wide, few), lambda: select.one(features))
    bank = compressors.build("ma_lmm", tokens=few * places)
    merging = (lambda: reference.ma_lmm(wide, few)) if frames <= 128 else None  # which needs hours for more
    yield Case("ma_lmm", shape, merging, lambda: bank.one(features))
    for name in OTHERS:
        other = compressors.build(name, keep=KEEP)
        yield Case(name, shape, None, lambda other=other: other.one(features))


def narrow_cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    """The shapes for which times of the authors' code are known."""
    features = video(1024, PLACES, 256, device, dtype)
    values = features.projected[0].values[:, 0].float()
    select = compressors.build("dpselect", tokens=256 * PLACES, per="patch")
    yield Case(
        "dpselect, patches", "1024 x 196 x 256", lambda: reference.dpselect(values, 256), lambda: select.one(features)
    )
    less = video(64, PLACES, 256, device, dtype)
    few = less.projected[0].values[:, 0].float()
    bank = compressors.build("ma_lmm", tokens=32 * PLACES)
    yield Case("ma_lmm", "64 -> 32 x 196 x 256", lambda: reference.ma_lmm(few, 32), lambda: bank.one(less))


def key_cases(device: str, dtype: torch.dtype, chunks: Sequence[int] = (2048, 4096)) -> Iterator[Case]:
    """Scores of keys, one layer of 28 query and 4 key heads."""
    for length in chunks:
        dice = torch.Generator().manual_seed(0)
        key = torch.randn(1, KEY_HEADS, length, HEAD_WIDTH, generator=dice).to(device, dtype)
        query = torch.randn(1, HEADS, length, HEAD_WIDTH, generator=dice).to(device, dtype)
        for name, asking in (("pivotkv scores", query), ("question's scores", query[:, :, :PROMPT])):
            yield Case(
                name,
                f"{asking.shape[2]} x {length}, 28/4 heads of 128",
                lambda asking=asking, key=key: reference.attention_scores(asking, key),
                lambda asking=asking, key=key: received_attention(asking, key).mean(0),
            )


def clocked(work: Callable[[], object], device: str) -> float:
    """Seconds of one call; on a CPU those of all threads, which other processes change little."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    synchronize(device)
    started = clock()
    work()
    synchronize(device)
    return clock() - started


def measure(work: Callable[[], object], device: str) -> tuple[float, int]:
    """Best seconds, and extra bytes of one run."""
    work()
    times: list[float] = []
    while len(times) < 2 or (sum(times) < SECONDS and len(times) < MOST_RUNS):
        times.append(clocked(work, device))
    gc.collect()
    reset_peak(torch.device(device))
    before = peak_bytes(torch.device(device))
    if before is None:
        return min(times), most_live_bytes(work)
    work()
    return min(times), (peak_bytes(torch.device(device)) or 0) - before


@torch.no_grad()
def run(cases: Iterator[Case], device: str) -> Iterator[Measured]:
    """Measure cases one after the other."""
    for case in cases:
        before = measure(case.reference, device) if case.reference is not None else None
        yield Measured(case, before, measure(case.ours, device))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = report.arguments(__doc__, [32, 128, 1024])
    parser.add_argument("--width", type=int, default=WIDTH, help=f"width of the features (default: {WIDTH})")
    options = parser.parse_args(argv)
    dtype = getattr(torch, options.dtype)

    def cases() -> Iterator[Case]:
        for frames in options.frames:
            yield from token_cases(frames, options.device, dtype, options.width)
        yield from narrow_cases(options.device, dtype)
        yield from key_cases(options.device, dtype)

    rows = report.follow(one.cells() for one in run(cases(), options.device))
    head = f"{report.command(__file__, argv)} on {report.machine(options.device)}, {options.dtype}. {NOTE}"
    report.show(COLUMNS, rows, head)
    if options.out is not None:
        report.write(options.out, f"Compressors, {options.device}, {options.dtype}", head, COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
