"""Ask every entry's model the task's questions; an evaluation can be stopped and resumed anywhere.

Entries of one model take turns on each video, which is decoded and encoded once for all of them. Started by `torchrun`,
each process takes its share of the videos that are pending; what a process that died has left is shared out again at
the next start, among more or fewer processes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import zip_longest
from typing import Any

from langdc import devices, jsonl
from langdc.distributed import barrier, broadcast, is_main_process, main_process_first, rank, world_size
from langdc.evaluate import matching
from langdc.evaluate.folder import HEADER, EvalFolder
from langdc.evaluate.identity import identity, plugin_sources
from langdc.evaluate.judge import Judge
from langdc.evaluate.models import OwnCompressor, training_record
from langdc.evaluate.run import Run, Session
from langdc.evaluate.settings import EntryConfig, EvalConfig
from langdc.evaluate.tasks import Task
from langdc.evaluate.videos import CalibrationSet, FeatureReader, VideoCache
from langdc.hashing import content_hash
from langdc.log import progress, track
from langdc.pipeline import VideoLM
from langdc.timing import StageTimer
from langdc.watchdog import Watchdog, beat


def load_model(entry: EntryConfig, **place: Any) -> VideoLM:
    """Load the model of an entry as it is; its compressors are put on it afterwards. `place`: device and dtype."""
    backbone = entry.backbone.model_dump() if entry.backbone is not None else None
    return VideoLM.from_pretrained(entry.model, backbone=backbone, **place)


def evaluate(
    config: EvalConfig,
    task: Task,
    command: Sequence[str] = (),
    load: Callable[[EntryConfig], VideoLM] | None = None,
    judge: Judge | None = None,
    retry_failed: bool = False,
) -> EvalFolder:
    """Evaluate all entries, or what is missing of them, into `config.output`.

    A video that cannot be read or answered scores 0 on its questions and is counted as failed; the evaluation
    continues. The replies are put to the `judge`, if any, once all are there. `retry_failed` asks again what failed
    before. Raises ValueError for settings that cannot work and for a folder that holds an evaluation of something else.
    """
    videos = matching.calibration_videos(config, task)
    where = devices.named(config.device)  # an error before anything is written
    load = load or partial(load_model, device=where, dtype=config.dtype)
    # a refused start leaves no new folder
    new = jsonl.making_folder(config.output, HEADER, "sessions/*") if is_main_process() else nullcontext()
    with new, EvalFolder.locked(config.output):
        main_process_first(lambda: _start(config, task, command))
        folder = EvalFolder.read(config.output)
        if retry_failed:
            main_process_first(lambda: [folder.forget_failures(name) for name in folder.names()])
        main_process_first(lambda: _check_videos(task, folder))
        with Watchdog(config.watchdog, config.output):
            _ask(config, task, folder, videos, load)
            if is_main_process():
                folder.write_submissions(task.submission)
                if judge is not None:
                    judge.judge(folder)
    return folder


def _start(config: EvalConfig, task: Task, command: Sequence[str]) -> None:
    entries = config.all_entries
    info = {
        "target_kinds": list(task.target_kinds),
        "kind_weights": None if task.kind_weights is None else dict(task.kind_weights),
        "training": {entry.name: training_record(entry.model) for entry in entries},
        "own_compressors": {entry.name: vars(OwnCompressor.of(entry.model)) for entry in entries},
    }
    newest = {**config.judging, "entries": [entry.model_dump(mode="json") for entry in entries]}
    EvalFolder.start(config.output, identity(config, task), info, command, newest, plugin_sources(config))


def _check_videos(task: Task, folder: EvalFolder) -> None:
    """ValueError if a video has changed since its questions were answered; a missing one keeps its answers."""
    paths = {record.id: task.path(record) for record in task.records if record.id not in task.broken}
    lines = (line for name in folder.names() for line in folder.lines(name) if line.get("content"))
    known = {(line["video"], line["content"]) for line in lines if line["video"] in paths}
    there = [(paths[video], content) for video, content in sorted(known) if paths[video].exists()]
    if changed := [path for path, content in there if content_hash(path) != content]:
        raise ValueError(
            f"{folder.directory} holds answers about other videos: {len(changed)} have changed since, such as "
            f"{changed[0]}. Restore them, choose another place with output=..., or delete that folder."
        )


def _ask(config: EvalConfig, task: Task, folder: EvalFolder, videos: list, load: Callable) -> None:
    named = any(entry.control is not None for entry in config.all_entries)
    stored = FeatureReader(config.features, config.features_dtype) if config.features is not None else None
    memory = config.memory_gib * 2**30
    cache = VideoCache(folder.file("encoding"), memory, config.batch_size, named, task.clip, stored)
    others = CalibrationSet(videos, VideoCache(folder.file("calibration"), named=False, stored=stored))
    started, caches = time.perf_counter(), (cache, others.cache)
    with StageTimer(devices.named(config.device)) as timer:
        try:
            session = Session(config, task, folder, cache, others)
            for entries in _groups(config.all_entries):
                _ask_group(session, entries, load)
        finally:  # however it ends: what it took, in stages and in all, and how often videos were decoded
            counts = {name: sum(getattr(one, name) for one in caches) for name in ("videos", "decoded", "read")}
            spent = {"seconds": time.perf_counter() - started, "stages": timer.seconds, **counts}
            key = f"session/{len(folder.header['sessions'])}/{rank()}"
            folder.file("sessions").append([{"type": "session", "key": key, **spent}])
            for one in caches:
                one.readers.shutdown(wait=False, cancel_futures=True)


def _groups(entries: Sequence[EntryConfig]) -> Iterator[list[EntryConfig]]:
    """Entries that may be asked together: of one model, and none matching another that is yet to come."""
    depth: dict[str, int] = {}
    groups: dict[Any, list[EntryConfig]] = {}
    for entry in entries:
        depth[entry.name] = 0 if entry.match is None else depth[entry.match] + 1
        groups.setdefault((depth[entry.name], entry.model_key), []).append(entry)
    for key in sorted(groups, key=lambda key: key[0]):
        yield groups[key]


def _ask_group(session: Session, entries: Sequence[EntryConfig], load: Callable) -> None:
    """Ask the entries of one model."""
    config, task = session.config, session.task
    every = [Run(session, entry) for entry in entries]
    runs = [run for run in every if "finished" not in run.out]
    if not runs:
        return
    with progress(f"Loading {runs[0].entry.model}"):
        lm = load(runs[0].entry)
    lm.model.to(devices.named(config.device))
    # set the budgets of the entries and put their compressors on the model
    key, need = VideoCache.key_of(lm), lm.compressor.needs
    for entry in config.all_entries:  # those of later groups included
        if entry.model_key == runs[0].entry.model_key and entry.control is None:
            need |= matching.with_parts(lm, entry, {"tokens": 1} if entry.calibrated else {}).compressor.needs
    for run in runs:
        with progress(f"{run.entry.name}: before its questions"):
            main_process_first(lambda run=run: run.calibrate(lm, key))
        run.out.reread()
        run.set_model(lm, key, need)
        main_process_first(run.describe_model)
    pending = [record.id for record in task.records if any(run.is_pending(record) for run in runs)]
    by_id = {record.id: record for record in task.records}
    mine = [by_id[name] for name in broadcast(pending)[rank() :: world_size()]]  # all share out the main process's list
    timed = config.warmup_videos + config.timing_videos if config.timing_videos else 0
    names = ", ".join(run.entry.name for run in runs)[:40]
    alike = not all(run.lm.chooses for run in runs)  # some read the same frames for all questions
    with progress(f"{names}: videos", len(mine)) as advance:
        for first in range(0, len(mine), config.batch_size):
            if alike and first - config.batch_size < timed <= first:  # what is timed has the machine to itself
                session.cache.decode_ahead(lm, key, mine[first:], task.path)
            records = mine[first : first + config.batch_size]
            for run in runs:
                beat(f"videos before {', '.join(record.id for record in records)[:200]}, asked of {run.entry.name}")
                run.answer([record for record in records if run.is_pending(record)])
            advance(len(records))
    timing = zip_longest(*(run.time(run.records[rank() :: world_size()]) for run in runs))
    for _ in track(timing, min(timed, len(task.records)), f"{names}: timing"):
        pass
    barrier()
    main_process_first(lambda: [run.finish() for run in runs])
