"""What a training step was made of and how fast it went: figures for the log and the trackers.

The loss modules tell of their batches, the Trainer of its waiting. All ranks make the same calls.
"""

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from langdc import devices
from langdc.distributed import world_size
from langdc.log import get_logger

logger = get_logger(__name__)

PEAKS = {
    # name in torch: dense TFLOP/s of 16-bit types, of tf32 and of float32 without it, as the makers' data sheets say
    "B200": (2250, 1100, 75),
    "H200": (989, 495, 67),
    "H100 PCIe": (756, 378, 51),
    "H100": (989, 495, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6),
    "L40": (181, 90.5, 90.5),
    "RTX A6000": (155, 77.4, 38.7),
    "A10": (125, 62.5, 31.2),
    "RTX 4090": (165, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
    "V100": (125, 15.7, 15.7),
    "T4": (65, 8.1, 8.1),
}
PROBE_SIDE, PROBE_ROUNDS = 512, 8
FIGURES = (
    "samples_per_second",
    "tokens_per_second",
    "tokens_per_sample",
    "soft_tokens_per_segment",
    "data_wait",
    "mfu",
    "peak_bytes",
    "density_correlation",
    "held_out_soft_tokens",
)
"""What `Meter`, and `Watch` in tracking.py, add to a line of the log, besides "loss_<part>"."""


def peak_flops(device: torch.device, precision: str, given: float | None = None) -> tuple[float | None, str]:
    """Operations per second that a device can do at best, and where the number is from; None where nobody knows.

    Taken from the setting, else from a table by device name, else, on a CPU, from a product measured now.
    """
    if given is not None:
        return given, "the setting peak_flops"
    if device.type == "cpu":
        return _measured_peak(precision), "a matrix product measured on this CPU"
    name = str(torch.get_device_module(device.type).get_device_name(device))
    known = next((row for key, row in PEAKS.items() if key in name), None)
    if known is None:
        return None, f"unknown for {name}: set peak_flops to have it"
    column = (
        0 if precision in ("bfloat16", "float16") else 1 if torch.get_float32_matmul_precision() != "highest" else 2
    )
    return known[column] * 1e12, f"the data sheet of {name}"


def _measured_peak(precision: str) -> float:
    sides = torch.ones(PROBE_SIDE, PROBE_SIDE, dtype=getattr(torch, precision, torch.float32))
    best = math.inf
    for _ in range(PROBE_ROUNDS):
        started = time.perf_counter()
        torch.matmul(sides, sides)
        best = min(best, time.perf_counter() - started)
    return 2.0 * PROBE_SIDE**3 / best


def peak_bytes() -> int:
    """The most memory this process has held: of the accelerator's, tensors alone; on a CPU, everything resident."""
    if devices.has_accelerator():
        return int(torch.get_device_module(devices.device().type).max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Meter:
    """Figures between one line of the log and the next.

    `module` tells of its last batch: `counts`, numbers of "samples", "tokens" (that the trained language model reads),
    "soft_tokens" and "segments"; and `parts`, the summed loss and the number of targets of each part of the loss.
    A module that tells nothing gets figures of time and memory only.
    """

    def __init__(self, module: nn.Module, precision: str = "float32", peak: float | None = None) -> None:
        self.module = module
        self.precision = precision
        self.given_peak = peak
        self.held_out: dict[str, Any] = {}
        """What `Watch` found last; joins the next line."""
        self._peak: tuple[float | None, str] | None = None
        self._started: float | None = None
        self._flops = 0.0
        self._waited = 0.0
        self._counts: Counter[str] = Counter()
        self._parts: dict[str, list[Any]] = {}

    @contextmanager
    def waiting(self, total_flops: float) -> Iterator[None]:
        """Around whatever fetches a batch; the first one starts the clock."""
        before = time.perf_counter()
        if self._started is None:
            self._started, self._flops = before, total_flops
        yield
        self._waited += time.perf_counter() - before

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is no training: it counts to no figure."""
        before = time.perf_counter()
        yield
        if self._started is not None:
            self._started += time.perf_counter() - before

    def add(self, idle: bool = False) -> None:
        """Take in the batch that the module just learned; of an idle one only the names, which all ranks must have."""
        self._counts.update({} if idle else getattr(self.module, "counts", {}))
        for name, (total, targets) in getattr(self.module, "parts", {}).items():
            known = self._parts.setdefault(name, [0.0, 0])
            if not idle:
                known[0], known[1] = known[0] + total, known[1] + targets

    def figures(self, total_flops: float) -> dict[str, Any]:
        """What the log gets, over all ranks; begins anew. `total_flops` are the run's so far, of all ranks."""
        if self._started is None:
            return {}
        seconds = max(time.perf_counter() - self._started, 1e-9)
        parts = {name: [float(total), float(targets)] for name, (total, targets) in sorted(self._parts.items())}
        names = ("samples", "tokens", "soft_tokens", "segments")
        mine = [self._waited, *(self._counts[name] for name in names), *(n for pair in parts.values() for n in pair)]
        waited, samples, tokens, soft, segments, *losses = _summed(mine)
        found: dict[str, Any] = {}
        if samples:
            found["samples_per_second"], found["tokens_per_sample"] = samples / seconds, tokens / samples
            found["tokens_per_second"] = tokens / seconds
        if segments:
            found["soft_tokens_per_segment"] = soft / segments
        found["data_wait"] = min(1.0, waited / (seconds * world_size()))
        found.update({f"loss_{name}": losses[2 * n] / max(losses[2 * n + 1], 1) for n, name in enumerate(parts)})
        peak = self._peak_flops()
        if peak and total_flops > self._flops:
            found["mfu"] = (total_flops - self._flops) / (seconds * peak * world_size())
        found["peak_bytes"] = peak_bytes()
        found = {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()}
        found.update(self.held_out)
        self._started, self._flops, self._waited = time.perf_counter(), total_flops, 0.0
        self._counts, self._parts, self.held_out = Counter(), {}, {}
        return found

    def _peak_flops(self) -> float | None:
        if self._peak is None:
            self._peak = peak_flops(devices.device(), self.precision, self.given_peak)
            logger.info("mfu: %s %s.", "against" if self._peak[0] else "left out, the peak is", self._peak[1])
        return self._peak[0]


def _summed(values: list[float]) -> list[float]:
    """The sums over all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    found = torch.tensor(values, dtype=torch.float32, device=devices.device())
    dist.all_reduce(found)
    return found.tolist()
