"""Throughput of training: figures of the steps since the last line, for the log and the trackers.

The module counts its batches, the Trainer its waiting. All ranks make the same calls.
"""

import resource
import sys
import time
import timeit
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
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
COUNTS = ("samples", "tokens", "padding", "soft_tokens", "segments")


class Meter:
    """Figures between one line of the log and the next.

    Of its last batch `module` has `figures`, numbers of "samples", "tokens" (that trained language models read),
    "padding" (what fills their rows up to the longest), "soft_tokens" and "segments"; `parts`, the sum and the count of
    each loss; and `names` of all losses, the same on all ranks. A module without them gets figures of time and memory
    only.
    """

    def __init__(self, module: nn.Module, precision: str = "float32", peak: float | None = None) -> None:
        self.module, self.precision, self._given_peak = module, precision, peak
        self.held_out: dict[str, Any] = {}
        """Figures of the last `CaptionEval`; they join the next line."""
        self._started: float | None = None
        self._flops, self._waited = 0.0, 0.0
        self._counts: Counter[str] = Counter()
        self._parts: dict[str, tuple[Any, int]] = {}

    @contextmanager
    def waiting(self, total_flops: float) -> Iterator[None]:
        """Count the enclosed time as waiting for data; the first call starts the clock."""
        before = time.perf_counter()
        if self._started is None:
            self._started, self._flops = before, total_flops
        yield
        self._waited += time.perf_counter() - before

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the enclosed time from the throughput."""
        before = time.perf_counter()
        yield
        if self._started is not None:
            self._started += time.perf_counter() - before

    def add(self) -> None:
        """Add the batch that the module just learned."""
        self._counts.update(getattr(self.module, "figures", {}))
        for name, (total, count) in getattr(self.module, "parts", {}).items():
            summed, counted = self._parts.get(name, (0.0, 0))
            self._parts[name] = summed + total, counted + count

    def figures(self, total_flops: float) -> dict[str, Any]:
        """The figures over all ranks since the last call. `total_flops` are the run's so far, of all ranks."""
        if self._started is None:
            return {}
        seconds = max(time.perf_counter() - self._started, 1e-9)
        names = getattr(self.module, "names", sorted(self._parts))
        parts = [float(each) for name in names for each in self._parts.get(name, (0, 0))]
        mine = [self._waited, *(float(self._counts[name]) for name in COUNTS), *parts]
        if world_size() > 1:  # the sums over all ranks
            everyone = torch.tensor(mine, dtype=torch.float32, device=devices.device())
            dist.all_reduce(everyone)
            mine = everyone.tolist()
        waited, samples, tokens, padding, soft, segments, *losses = mine
        found: dict[str, Any] = {}
        if samples:
            found["samples_per_second"], found["tokens_per_sample"] = samples / seconds, tokens / samples
            found["tokens_per_second"] = tokens / seconds
        if tokens:
            found["padding"] = padding / (tokens + padding)
        if segments:
            found["soft_tokens_per_segment"] = soft / segments
        found["data_wait"] = min(1.0, waited / (seconds * world_size()))
        triples = zip(names, losses[::2], losses[1::2], strict=True)
        found |= {f"loss_{name}": total / count for name, total, count in triples if count}
        if self._peak and total_flops > self._flops:
            found["mfu"] = (total_flops - self._flops) / (seconds * self._peak * world_size())
        found = {name: round(value, 6) for name, value in found.items()}
        # of an accelerator's memory, tensors alone; on a CPU, all that was resident
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        found |= {"peak_bytes": devices.peak_bytes(devices.device()) or resident, **self.held_out}
        self._started, self._flops, self._waited = time.perf_counter(), total_flops, 0.0
        self._counts, self._parts, self.held_out = Counter(), {}, {}
        return found

    @cached_property
    def _peak(self) -> float | None:
        found, source = _peak_flops(devices.device(), self.precision, self._given_peak)
        logger.info("mfu: %s %s.", "against" if found else "left out, the peak is", source)
        return found


def _peak_flops(device: torch.device, precision: str, given: float | None = None) -> tuple[float | None, str]:
    """Peak operations per second of a device, and where the number is from; None where it is unknown.

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
    half, tf32, single = known
    exact = single if torch.get_float32_matmul_precision() == "highest" else tf32
    return 1e12 * (half if precision in ("bfloat16", "float16") else exact), f"the data sheet of {name}"


def _measured_peak(precision: str) -> float:
    factor = torch.ones(PROBE_SIDE, PROBE_SIDE, dtype=getattr(torch, precision))
    best = min(timeit.repeat("factor @ factor", globals={"factor": factor}, number=1, repeat=PROBE_ROUNDS))
    return 2.0 * PROBE_SIDE**3 / best
