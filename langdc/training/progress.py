"""What a training run tells: a line of JSON per logging step, and a bar for whoever watches."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from langdc import jsonl
from langdc.log import console, get_logger
from langdc.training.meter import FIGURES

logger = get_logger(__name__)


def read_log(path: Path, phase: str | None = None) -> list[dict]:
    """The lines of a run's log, of one phase or all; a last line cut short by a kill is left out."""
    return [line for line in jsonl.read(path) if phase in (None, line["phase"])]


class JsonLog(TrainerCallback):
    """Appends {"phase", "step", "loss", "learning_rate", "grad_norm", "samples", "flops", "seconds"} to a file.

    With the figures of `langdc.training.meter`, of the steps since the line before. `loss` is the mean over these;
    `seconds` are those of training, without pauses. Lines of steps after the checkpoint that a run continues from are
    dropped: those steps are made again.
    """

    def __init__(self, path: Path, phase: str, samples_at: Callable[[int], int]) -> None:
        self.path = path
        self.phase = phase
        self.samples_at = samples_at
        self.seconds = 0.0
        self._offset = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Cut the log back to where training goes on."""
        kept = [
            line for line in read_log(self.path) if line["phase"] != self.phase or line["step"] <= state.global_step
        ]
        self.seconds = next((line["seconds"] for line in reversed(kept) if line["phase"] == self.phase), 0.0)
        self._offset = self.seconds - time.perf_counter()
        jsonl.write_lines(self.path, kept)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **_: object,
    ) -> None:
        """Append a line."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            logger.warning("%s: the loss at step %d is %s.", self.phase, state.global_step, logs["loss"])
        self.seconds = self._offset + time.perf_counter()
        line = {
            "phase": self.phase,
            "step": state.global_step,
            **{name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs},
            **{name: value for name, value in logs.items() if name in FIGURES or name.startswith("loss_")},
            "samples": self.samples_at(state.global_step),
            "flops": state.total_flos,
            "seconds": round(self.seconds, 3),
        }
        jsonl.append(self.path, line)


class Bar(TrainerCallback):
    """A progress bar on a terminal; elsewhere a line per tenth of the way."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self.bar.add_task(phase, total=None, loss="-")
        self._told = 0

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
        logs: dict | None = None,
        **_: object,
    ) -> None:
        """Show the loss."""
        if not logs or "loss" not in logs:
            return
        self.bar.update(self._task, loss=f"{logs['loss']:.4f}")
        tenth = 10 * state.global_step // max(state.max_steps, 1)
        if self.bar.disable and tenth > self._told:
            self._told = tenth
            logger.info("%s: step %d of %d, loss %.4f", self.phase, state.global_step, state.max_steps, logs["loss"])

    def close(self) -> None:
        """Take it away, also after an error."""
        self.bar.stop()
