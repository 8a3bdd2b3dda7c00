"""The log of a run, a line of JSON per logging step, and its progress bar."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState

from langdc import jsonl
from langdc.log import LINE_SECONDS, console, get_logger, pace
from langdc.text import plain

logger = get_logger(__name__)


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
    """A progress bar on a terminal; elsewhere a line per tenth of the way, and every LINE_SECONDS."""

    def __init__(self, name: str) -> None:
        self.name = name
        named = TextColumn("{task.description}", markup=False)  # a folder of the user's
        columns = (named, BarColumn(), MofNCompleteColumn(), "loss {task.fields[loss]}")
        terminal = console.is_terminal
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not terminal)
        self._task = self.bar.add_task(plain(name), total=None, loss="-")
        self._tenths, self._begun, self._started, self._last = 0, 0, 0.0, 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Show the bar."""
        self.bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self.bar.start()
        self._begun, self._started = state.global_step, time.monotonic()
        self._last = self._started

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Move it."""
        self.bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Show the loss."""
        if not logs or "loss" not in logs:
            return
        self.bar.update(self._task, loss=f"{logs['loss']:.4f}")
        step, steps, now = state.global_step, state.max_steps, time.monotonic()
        tenths = 10 * step // max(steps, 1)
        if self.bar.disable and (tenths > self._tenths or now - self._last >= LINE_SECONDS):
            self._tenths, self._last = tenths, now
            taken = pace(step - self._begun, steps - step, now - self._started)
            logger.info("%s: step %d of %d, loss %.4f, %s", self.name, step, steps, logs["loss"], taken)

    def close(self) -> None:
        """Take it away, also after an error."""
        self.bar.stop()
