"""Progress of a run: a line of JSON per logging step, and a bar on a terminal."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from langdc import jsonl
from langdc.log import console, get_logger
from langdc.train.meter import FIGURES

logger = get_logger(__name__)


def keep_until(path: Path, step: int) -> list[dict]:
    """Drop the lines of a log after a step, which will be made again; those that are left."""
    kept = [line for line in jsonl.read(path) if line["step"] <= step]
    if path.is_file():
        jsonl.write_text(path, "")
        jsonl.append(path, *kept)
    return kept


class JsonLog(TrainerCallback):
    """Appends {"step", "loss", "learning_rate", "grad_norm", "samples", "flops", "seconds"} to a file.

    With the figures of `langdc.train.meter`, of the steps since the line before. `loss` is the mean over these steps;
    `seconds` are those of training, without pauses. `samples_at`: samples learned from after so many steps.
    """

    def __init__(self, path: Path, name: str, samples_at: Callable[[int], int]) -> None:
        self.path, self.name, self.samples_at = path, name, samples_at
        self.seconds = 0.0
        self._offset = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Cut the log back to the step that the run resumes from."""
        kept = keep_until(self.path, state.global_step)
        self.seconds = kept[-1]["seconds"] if kept else 0.0
        self._offset = self.seconds - time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: object,
    ) -> None:
        """Append a line."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            logger.warning("%s: the loss at step %d is %s.", self.name, state.global_step, logs["loss"])
        self.seconds = self._offset + time.perf_counter()
        line = {
            "step": state.global_step,
            **{name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs},
            **{name: value for name, value in logs.items() if name in FIGURES or name.startswith("loss_")},
            "samples": self.samples_at(state.global_step),
            "flops": state.total_flos,
            "seconds": round(self.seconds, 3),
        }
        jsonl.append(self.path, line)


class ProgressBar(TrainerCallback):
    """A progress bar on a terminal; elsewhere a line per tenth of the steps."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self.bar.add_task(name, total=None, loss="-")
        self._logged_tenth = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Show the bar."""
        self.bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Move it."""
        self.bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: object,
    ) -> None:
        """Show the loss."""
        if not logs or "loss" not in logs:
            return
        self.bar.update(self._task, loss=f"{logs['loss']:.4f}")
        tenth = 10 * state.global_step // max(state.max_steps, 1)
        if self.bar.disable and tenth > self._logged_tenth:
            self._logged_tenth = tenth
            logger.info("%s: step %d of %d, loss %.4f", self.name, state.global_step, state.max_steps, logs["loss"])

    def close(self) -> None:
        """Take it away, also after an error."""
        self.bar.stop()
