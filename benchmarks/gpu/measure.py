"""What the steps of `make gpu` share: the place they run at, ceilings of the card, floors, the biggest costs."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from langdc.devices import peak_bytes, synchronize

Row = dict[str, Any]
"""A line of a table: its "table", then column by column."""
BIGGEST, NAME_LENGTH = 5, 70


@dataclass(frozen=True)
class Place:
    """Where a step runs: device and type, whether with `tiny` sizes, a folder for its files, and the ceilings."""

    device: str
    dtype: torch.dtype
    tiny: bool
    folder: Path
    flops_per_second: float = 1e10
    bytes_per_second: float = 1e10
    import_seconds: float = 0.0

    def floor(self, flops: float = 0.0, read_bytes: float = 0.0) -> float:
        """The floor in seconds of this many operations and bytes of memory traffic, which overlap."""
        return max(flops / self.flops_per_second, read_bytes / self.bytes_per_second)

    @property
    def peak_gib(self) -> float | None:
        """Most memory since `devices.reset_peak`, in GiB; None on a CPU."""
        peak = peak_bytes(torch.device(self.device))
        return None if peak is None else peak / 2**30


def ceilings(place: Place) -> tuple[float, float]:
    """Operations per second of a large matrix product in the place's type, and bytes per second of a copy."""
    side, length, rounds = (256, 2**20, 3) if place.tiny else (8192, 2**30, 10)
    factor = torch.randn(side, side, device=place.device).to(place.dtype)
    source = torch.zeros(length, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    product = min(seconds(lambda: factor @ factor, place.device) for _ in range(rounds))
    copy = min(seconds(lambda: target.copy_(source), place.device) for _ in range(rounds))
    return 2.0 * side**3 / product, 2.0 * length / copy


def seconds(work: Callable[[], object], device: str) -> float:
    """Seconds of one call, the device waited for at both ends."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def costs(case: str, work: Callable[[], object], device: str) -> Iterator[Row]:
    """The biggest costs of one call: kernels on CUDA, operations on a CPU, with their shares and number of calls."""
    with torch.profiler.profile() as seen:
        taken = seconds(work, device)
    on_card = device != "cpu"
    attribute = "self_device_time_total" if on_card else "self_cpu_time_total"
    events = [event for event in seen.key_averages() if event.device_type.name == ("CUDA" if on_card else "CPU")]
    times = sorted(((getattr(event, attribute), event.key, event.count) for event in events), reverse=True)
    total = max(sum(each for each, _, _ in times), 1e-9)
    for each, name, count in times[:BIGGEST]:
        share = f"{100 * each / total:.0f} %"
        yield {"table": "costs", "case": case, "operation": name[:NAME_LENGTH], "share": share, "calls": count}
    busy = f"{100 * total / (1e6 * taken):.0f} %"
    calls = sum(count for _, _, count in times)
    yield {"table": "costs", "case": case, "operation": "all, as a share of the time", "share": busy, "calls": calls}


def weight_bytes(*parts: nn.Module) -> int:
    """Bytes of the weights of some modules, each counted once."""
    weights = {id(weight): weight for part in parts for weight in part.parameters()}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())
