"""The table of `benchmarks/compressors.py`, with floors: a video's features read once at the ceiling of copies."""

from collections.abc import Iterator
from itertools import chain
from math import prod

import torch

from benchmarks import compressors as benchmark
from benchmarks.gpu.measure import Place, Row, costs
from langdc import compressors

FRAMES, SECONDS = (128, 1024), 0.5
TINY = {"width": 16, "places": 12}


def rows(place: Place) -> Iterator[Row]:
    """Token compressors, the shapes that authors' code was measured with, scores of keys; then a profile of each."""
    benchmark.SECONDS = 0.0 if place.tiny else SECONDS
    lengths, sizes = ((8,), TINY) if place.tiny else (FRAMES, {})
    cases = [benchmark.token_cases(frames, place.device, place.dtype, **sizes) for frames in lengths]
    if not place.tiny:
        cases.append(benchmark.narrow_cases(place.device, place.dtype))
    cases.append(benchmark.key_cases(place.device, place.dtype, *([(32,)] if place.tiny else [])))
    for found in benchmark.run(chain(*cases), place.device):
        row: Row = {"table": "compressors", **dict(zip(benchmark.COLUMNS, found.cells(), strict=True))}
        shape = found.case.shape.split(" x ")
        if all(part.isdigit() for part in shape):
            floor = place.floor(0, prod(map(int, shape)) * place.dtype.itemsize)
            row |= {"floor ms": 1e3 * floor, "ours / floor": found.ours[0] / floor}
        yield row
    yield from _profiles(place, lengths[0], sizes)


@torch.no_grad()
def _profiles(place: Place, frames: int, sizes: dict[str, int]) -> Iterator[Row]:
    features = benchmark.video(frames, sizes.get("places", benchmark.PLACES), sizes.get("width", benchmark.WIDTH),
                               place.device, place.dtype)  # fmt: skip
    for name in ("vidcom2", "dpselect", *benchmark.OTHERS):
        method = compressors.build(name, keep=benchmark.KEEP)
        method.one(features)
        yield from costs(f"{name}, {frames} frames", lambda method=method: method.one(features), place.device)
