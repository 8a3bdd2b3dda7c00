"""An exponential moving average (EMA) of the trained parameters, in float32.

Of a parameter that ZeRO-3 partitions, each process averages the part that it holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langdc import distributed
from langdc.distributed import is_main_process


class Ema:
    """The averages of parameters. After step n each is d times the one before plus 1-d times the parameter, with
    d = min(decay, (1+n)/(10+n)), so that a short run is not the average of its random start.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = [part.float().clone() for part in self._held()]

    def _held(self) -> list[Tensor]:
        """What this process holds of each parameter."""
        return [getattr(parameter, "ds_tensor", parameter).detach() for parameter in self.parameters.values()]

    def update(self, step: int) -> None:
        """Update the averages with the parameters after a step."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for value, part in zip(self.values, self._held(), strict=True):
            value.lerp_(part.float(), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the context the parameters have the values of their averages. All ranks must call it."""
        before = [part.clone() for part in self._held()]
        self._put(self.values)
        try:
            yield
        finally:
            self._put(before)

    def _put(self, values: Sequence[Tensor]) -> None:
        for part, value in zip(self._held(), values, strict=True):
            part.copy_(value)
        # small ones are whole on every process, too
        whole: list[Any] = [p for p in self.parameters.values() if getattr(p, "ds_persist", False)]
        if whole:
            whole[0].partition(whole)
            whole[0].all_gather(whole)

    def save(self, file: Path) -> None:
        """Write all averages whole, by the main process. All ranks must call it."""
        found = {}
        for (name, parameter), value in zip(self.parameters.items(), self.values, strict=True):
            sizes: Any = parameter
            if hasattr(parameter, "ds_tensor"):
                parts = [torch.empty_like(value) for _ in range(distributed.world_size())]
                dist.all_gather(parts, value)
                value = torch.cat(parts)[: sizes.ds_numel].view(sizes.ds_shape)
            found[name] = value.cpu().contiguous() if is_main_process() else value
        if is_main_process():
            save_file(found, file)

    def load(self, file: Path) -> None:
        """Continue from averages that any number of processes wrote."""
        saved = load_file(file)
        for (name, parameter), value in zip(self.parameters.items(), self.values, strict=True):
            whole = saved[name]
            if hasattr(parameter, "ds_tensor"):  # of equal parts, the last one filled up
                first = len(value) * distributed.rank()
                whole = whole.flatten()[first : first + len(value)]
                value = value[: len(whole)]
            value.copy_(whole)
