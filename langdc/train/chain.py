"""Runs one after the other: each starts from the output of the one before, and what is finished is not repeated.

A recipe's folder lists its runs in `chain.yaml`: names of config files beside it, in order. A file that says no `start`
starts from the one before; the first starts from the published parts.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langdc import compat, distributed
from langdc import config as settings
from langdc.config import RunConfig
from langdc.configfiles import CHAIN, find_config, parse_yaml
from langdc.failures import ENDING, Ended, run_command
from langdc.log import get_logger
from langdc.train import output, stopping

logger = get_logger(__name__)

SAMPLE = "sample/langdc"
"""The recipe of which train/stage1.py .. stage3.py train a stage when no config is given."""


@dataclass(frozen=True)
class Link:
    """One run of a chain: its config, and what to call it."""

    name: str
    config: RunConfig

    @property
    def finished(self) -> Path | None:
        """The newest directory of this run that is finished."""
        return output.latest(self.config.output)


def read(names: Iterable[str | Path], overrides: Sequence[str] = ()) -> list[Link]:
    """The runs of config files and of folders with a chain.yaml, in order, with the same overrides.

    In a chain of several files `output=DIR` puts each run's directory into DIR. ValueError as `langdc.config.load`.
    """
    files = [file for name in names for file in _files(find_config(name))]
    places = [text for text in overrides if text.startswith("output=")] if len(files) > 1 else []
    trees = [found for file in files for found in _trees(file, [text for text in overrides if text not in places])]
    if places:
        _move([tree for _, tree in trees], Path(places[-1].removeprefix("output=")))
    links: list[Link] = []
    for name, tree in trees:
        follows = {"start": str(links[-1].config.output)} if links else {}
        links.append(Link(name, settings.check(RunConfig, {**follows, **tree}, name)))
    _check_order(links)
    return links


def _files(path: Path) -> list[Path]:
    if path.name != CHAIN:
        return [path]
    names = parse_yaml(path.read_bytes(), str(path))
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{path} is not a list of config files, such as: [stage1.yaml, stage2.yaml].")
    files = [find_config(name, path.parent) for name in names]
    if path.resolve() in {file.resolve() for file in files}:
        raise ValueError(f"{path} names itself.")
    return [file for name in files for file in _files(name)]


def _trees(file: Path, overrides: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Name and settings of every run that a file stands for: one, or the phases of a stage of 0.1."""
    tree = settings.read_tree(file, overrides)
    if (runs := compat.runs_of_stage(tree)) is not None:
        return [(f"{file} (phase {n})", run) for n, run in enumerate(runs, 1)]
    return [(str(file), compat.settings(tree))]


def _move(trees: list[dict[str, Any]], place: Path) -> None:
    """Put the outputs of runs into one folder; what starts from one of them finds it there."""
    moved = {}
    for tree in trees:
        output = Path(tree.get("output", RunConfig.model_fields["output"].default))
        moved[str(output)] = tree["output"] = str(place / output.name)
    for tree in trees:
        if "start" in tree:
            tree["start"] = moved.get(str(tree["start"]), tree["start"])


def _check_order(links: Sequence[Link]) -> None:
    """ValueError if two runs write to one place, or one starts from a run that comes after it."""
    outputs = [link.config.output for link in links]
    for number, link in enumerate(links):
        if (other := outputs.index(link.config.output)) < number:
            raise ValueError(f"{links[other].name} and {link.name} have the same output, {link.config.output}.")
        if link.config.start in outputs[number:]:
            later = links[outputs.index(link.config.start)].name
            raise ValueError(f"{link.name} starts from the output of {later}, which does not run before it.")


def run(links: Sequence[Link], train: Callable[[RunConfig], Path]) -> Path:
    """Train the runs that are not finished, in this process or in all of a launcher's; the last one's directory.

    ValueError for a run that is finished with other settings, or whose records are missing.
    """
    if len(links) == 1:
        return train(_started(links[0].config))
    directory = Path()
    for number, link in enumerate(links, 1):
        if (finished := distributed.broadcast(link.finished)) is not None:
            _check_finished(finished, link)
            logger.info("[%d/%d] %s is finished: %s", number, len(links), link.name, finished)
        else:
            logger.info("[%d/%d] %s -> %s", number, len(links), link.name, link.config.output)
        directory = finished or train(_started(link.config))
    return directory


def _started(config: RunConfig) -> RunConfig:
    """With the newest finished directory of the run to start from, where it had to be numbered."""
    start = config.start
    newest = distributed.broadcast(output.latest(start) if start is not None else None)
    if newest is None or newest == start:
        return config
    logger.info("Starting from %s, the newest finished run of %s.", newest, start)
    return config.model_copy(update={"start": newest})


def _check_finished(directory: Path, link: Link) -> None:
    if not (directory / output.SETTINGS).is_file():
        return
    before, places = settings.load(RunConfig, directory / output.SETTINGS), {"start": None, "output": Path()}
    # start and output may be numbered
    if lines := output.changed(before.model_copy(update=places), link.config.model_copy(update=places)):
        raise ValueError(
            f"{directory} holds a finished run of {link.name} with other settings:\n{lines}\n"
            "Give the chain another folder with output=DIR, or delete that run to train it again."
        )


def prepared(stage: str) -> list[str]:
    """The configs of a stage, after its data and the stages before it were made; all processes but the first wait.

    These are made by commands of their own, on one process. ValueError if one of them fails, Stopped if it was stopped.
    """
    links = read([SAMPLE])
    own = [link for link in links if link.config.stage == stage]
    earlier = links[: links.index(own[0])]
    files = [path for link in own for path in link.config.train.files]
    _make(lambda: all(path.is_file() for path in files), ["langdc.cli", "data", "sample", "--out", "data/sample"])
    if earlier:
        _make(lambda: all(link.finished for link in earlier), ["langdc.train", *(link.name for link in earlier)])
    return [link.name for link in own]


def _make(there: Callable[[], bool], command: Sequence[str]) -> None:
    if distributed.is_main_process() and not there():
        shown = f"python -m {' '.join(command)}"
        logger.info("First: %s", shown)
        alone = distributed.without_launcher(os.environ)
        code = run_command([sys.executable, "-m", *command], env=alone)
        if code - 128 in (signal.SIGINT, *ENDING):
            raise Ended(code - 128)
        if code == stopping.EXIT_CODE:
            raise stopping.Stopped(f"{shown} stopped")
        if code or not there():
            raise ValueError(f"{shown} ended with status {code}; its message is above.")
    while not there():
        time.sleep(0.5)  # the launcher ends all processes when the first one fails
