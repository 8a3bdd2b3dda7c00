"""Ask every row's model the task's questions and write down what it says, so that a run can stop and go on anywhere.

Rows of one model take turns on each video, which is decoded and encoded once for all of them. Started by `torchrun`,
each process takes its share of the videos; what one that died has left is shared out again at the next start.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from langdc import devices
from langdc.backbones import backbones
from langdc.checkpoint import locate, weights_hash
from langdc.compressors.base import compressors
from langdc.data.records import Record
from langdc.distributed import barrier, is_main_process, main_process_first, rank, world_size
from langdc.encoders import encoders
from langdc.evaluation import matching
from langdc.evaluation.judge import Judge, judge_rows
from langdc.evaluation.library import Asked, Library, Shelf, Stored, preprocessing
from langdc.evaluation.results import RunFolder, foreign_sources, sources_hash
from langdc.evaluation.row import Row
from langdc.evaluation.settings import CalibrationConfig, EvalConfig, RowConfig, own_compressor
from langdc.evaluation.tasks import Task, tasks
from langdc.evaluation.training import training_record
from langdc.hashing import file_hash
from langdc.kvcompressors import kvcompressors
from langdc.log import console
from langdc.pipeline import VideoLM
from langdc.timing import StageTimer

ZOOS = (compressors, kvcompressors, backbones, tasks, encoders)


def load_model(row: RowConfig) -> Asked:
    """Load the model of a row as it is; its compressors are put on it afterwards."""
    return VideoLM.from_pretrained(row.model, backbone=row.backbone.model_dump() if row.backbone is not None else None)


def identity(config: EvalConfig, task: Task) -> dict[str, Any]:
    """What must stay the same for a run to go on: settings, weights, sources, questions, what budgets are set on."""
    hashes: dict[Any, str] = {}
    for row in config.all_rows:
        hashes[row.model] = hashes.get(row.model) or weights_hash(locate(row.model))
    found = {
        "config": config.model_dump(mode="json", exclude={"output", *config.judging}),
        "weights_sha256": {row.name: hashes[row.model] for row in config.all_rows},
        "data_sha256": task.data_hash(),
        "sources_sha256": sources_hash(),
    }
    if foreign := foreign_sources(_members(found["config"])):
        found["foreign_sources_sha256"] = foreign
    if (calibration := _needed(config)) is not None:
        found["calibration_sha256"] = file_hash(calibration.data)
    return found


def _members(settings: Any) -> Iterator[Callable]:
    """The members of zoos that settings name, at any depth."""
    if isinstance(settings, list):
        for value in settings:
            yield from _members(value)
    elif isinstance(settings, dict):
        for zoo in ZOOS:
            if settings.get("name") in zoo.names():
                yield zoo.get(settings["name"])
        yield from _members(list(settings.values()))


def _needed(config: EvalConfig) -> CalibrationConfig | None:
    return config.calibration if any(row.calibrated for row in config.all_rows) else None


def evaluate(
    config: EvalConfig,
    task: Task,
    command: Sequence[str] = (),
    load: Callable[[RowConfig], Asked] = load_model,
    judge: Judge | None = None,
    retry_failed: bool = False,
) -> RunFolder:
    """Evaluate all rows, or what is missing of them, into `config.output`.

    A video that cannot be read or answered scores 0 on its questions and is counted as failed; the run goes on. The
    replies are put to the `judge`, if any, once all are there. `retry_failed` asks again what failed before. Raises
    ValueError for settings that cannot work and for a folder that holds a run of something else.
    """
    others = matching.other_videos(calibration, task) if (calibration := _needed(config)) is not None else []
    rows = config.all_rows
    info = {
        "target_kinds": list(task.target_kinds),
        "kind_weights": None if task.kind_weights is None else dict(task.kind_weights),
        "training": {row.name: training_record(row.model) for row in rows},
        "rows": [row.model_dump(mode="json") for row in rows],
        "own_compressors": {row.name: own_compressor(row.model) for row in rows},
    }
    with RunFolder.held(config.output):
        main_process_first(
            lambda: RunFolder.start(config.output, identity(config, task), info, command, config.judging)
        )
        folder = RunFolder.read(config.output)
        if retry_failed:
            main_process_first(lambda: [folder.forget_failures(name) for name in folder.names()])
        _ask(config, task, folder, others, load)
        if judge is not None and is_main_process():
            judge_rows(folder, task, judge)
    return folder


def _ask(config: EvalConfig, task: Task, folder: RunFolder, others: list, load: Callable[[RowConfig], Asked]) -> None:
    named = any(row.control is not None for row in config.all_rows)
    stored = Stored(config.features, config.features_dtype) if config.features is not None else None
    library = Library(folder.file("encoding"), config.memory_gib * 2**30, config.batch_size, named, task.clip, stored)
    shelf = Shelf(others, Library(folder.file("calibration"), named=False, stored=stored))
    with _accounted(folder, library, shelf.library), _progress() as progress:
        for together in _in_turn(config.all_rows):
            _together(together, config, task, folder, library, shelf, load, progress)


@contextmanager
def _accounted(folder: RunFolder, *libraries: Library) -> Iterator[None]:
    """Write down what all took, in stages and otherwise, and how often videos were decoded, however it ends."""
    started = time.perf_counter()
    with StageTimer() as timer:
        try:
            yield
        finally:
            counts = {name: sum(getattr(one, name) for one in libraries) for name in ("videos", "decoded", "read")}
            spent = {"seconds": time.perf_counter() - started, "stages": timer.seconds, **counts}
            number = len(folder.header["sessions"])
            folder.file("sessions").append([{"type": "session", "key": f"session/{number}", **spent}])


def failures(folder: RunFolder) -> int:
    """How many answers of all rows failed."""
    return sum(line["failed"] for name in folder.names() for line in folder.lines(name) if line["type"] == "answer")


def _in_turn(rows: Sequence[RowConfig]) -> Iterator[list[RowConfig]]:
    """Rows that may be asked together: of one model, and none matching another that is yet to come."""
    depth: dict[str, int] = {}
    for row in rows:
        depth[row.name] = 0 if row.match is None else depth[row.match] + 1
    groups: dict[Any, list[RowConfig]] = {}
    for row in rows:
        groups.setdefault((depth[row.name], _backbone(row)), []).append(row)
    for key in sorted(groups, key=lambda key: key[0]):
        yield groups[key]


def _backbone(row: RowConfig) -> tuple[str, str]:
    """What rows must have in common to be asked by one model."""
    return str(row.model), repr(row.backbone)


def _needs(lm: Asked, rows: Sequence[RowConfig]) -> frozenset[str]:
    """What the compressors of a model's rows need to know of a video, those of later passes included."""
    built = [lm, *(matching.equipped(lm, row, 1 if row.calibrated else None) for row in rows if row.control is None)]
    return frozenset().union(*(one.compressor.needs for one in built))


def _together(
    rows: Sequence[RowConfig],
    config: EvalConfig,
    task: Task,
    folder: RunFolder,
    library: Library,
    shelf: Shelf,
    load: Callable[[RowConfig], Asked],
    progress: Progress,
) -> None:
    """Ask some rows of one model."""
    main_process_first(lambda: [folder.merge(row.name) for row in rows])
    every = [
        Row(config, row, task, folder.row_file(row.name), library, shelf, folder.lines(row.match) if row.match else [])
        for row in rows
    ]
    work = [row for row in every if "finished" not in row.out]
    if not work:
        return
    lm = load(work[0].row)
    lm.model.to(devices.device() if config.device is None else config.device)
    seen, need = (
        preprocessing(lm),
        _needs(lm, [row for row in config.all_rows if _backbone(row) == _backbone(work[0].row)]),
    )
    for row in work:
        main_process_first(lambda row=row: _calibrate(row, lm, seen, folder))
        row.out.reread()
        row.equip(lm, seen, need)
        main_process_first(row.introduce)
    mine = _own([record for record in task.records if any(row.lacks(record) for row in work)])
    bar = progress.add_task(", ".join(row.row.name for row in work)[:40], total=len(mine))
    for chunk in _chunks(mine, config.batch_size):
        for row in work:
            row.answer([record for record in chunk if row.lacks(record)])
        progress.advance(bar, len(chunk))
    for _ in zip_longest(*(row.time(_own(row.records)) for row in work)):
        pass
    barrier()
    main_process_first(lambda: [_finish(row, folder) for row in work])


def _own(records: Sequence[Record]) -> list[Record]:
    return list(records[rank() :: world_size()])


def _calibrate(row: Row, lm: Asked, seen: str, folder: RunFolder) -> None:
    row.calibrate(lm, seen)
    folder.merge(row.row.name)


def _finish(row: Row, folder: RunFolder) -> None:
    folder.merge(row.row.name)
    row.out.reread()
    row.finish()
    folder.merge(row.row.name)


def _chunks(records: Sequence[Record], size: int) -> Iterator[list[Record]]:
    for first in range(0, len(records), size):
        yield list(records[first : first + size])


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("videos"))
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
