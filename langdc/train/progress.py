"""The log of a run, a line of JSON per logging step, and its progress bar."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from transformers import TrainerCallback, TrainerState

from langdc import jsonl
from langdc.log import progress


class JsonLog(TrainerCallback):
    """Appends {"step", "loss", "learning_rate", "grad_norm", "samples", "flops", "seconds"} to a file of JSON lines.

    With the figures of `langdc.train.meter`, of the steps since the line before. `loss` is the mean over these;
    `seconds` are those of training, without pauses. Lines of steps after the checkpoint that a run is resumed from are
    dropped: those steps are made again.
    """

    def __init__(self, path: Path, samples_at: Callable[[int], int]) -> None:
        self.path, self.samples_at, self._offset = path, samples_at, 0.0

    def figures(self) -> dict[str, Any]:
        """What the run comes to at its end; "loss" is the mean over the last tenth of the lines."""
        lines = jsonl.read(self.path)
        loss = fmean(line["loss"] for line in lines[-max(1, len(lines) // 10) :])
        totals = {name: lines[-1][name] for name in ("seconds", "samples", "flops")}
        return {"steps": lines[-1]["step"], "loss": loss, **totals}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Cut the log back to the checkpoint."""
        kept = [line for line in jsonl.read(self.path) if line["step"] <= state.global_step]
        self._offset = (kept[-1]["seconds"] if kept else 0.0) - time.perf_counter()
        jsonl.write_lines(self.path, kept)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Append a line."""
        if not logs or "loss" not in logs:
            return
        shown = {name: value for name, value in logs.items() if name != "epoch" and "/" not in name}
        totals = {"samples": self.samples_at(state.global_step), "flops": state.total_flos}
        seconds = round(self._offset + time.perf_counter(), 3)
        jsonl.append(self.path, {"step": state.global_step, **shown, **totals, "seconds": seconds})


class Bar(TrainerCallback):
    """The `progress` of steps, with the loss; without a terminal also a line per tenth of the way."""

    def __init__(self, name: str) -> None:
        self.name, self._stack, self._tenths, self._step, self._advance = name, ExitStack(), 0, 0, cast(Any, None)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Show the bar."""
        self._step = state.global_step
        self._advance = self._stack.enter_context(progress(f"{self.name}: steps", state.max_steps, self._step))

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Move it."""
        self._advance(state.global_step - self._step)
        self._step = state.global_step

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Show the loss."""
        if logs and "loss" in logs:
            before, self._tenths = self._tenths, 10 * state.global_step // max(state.max_steps, 1)
            self._advance(0, self._tenths > before, f"{self.name}: loss {logs['loss']:.4f}, steps")

    def close(self, *_: Any, **__: Any) -> None:
        """Take it away, also after an error."""
        self._stack.close()

    on_train_end = close
