"""`langdc data features`: store encoder outputs of a data set, so that training and evaluation read them from disk.

Prints the size before it begins, and afterwards the reading speed and the number of epochs after which storing pays;
with --plan it only prints the size. After an interruption the same command continues. Several processes share the
work: torchrun --nproc-per-node 2 data_prep/features.py ...
"""

import argparse
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from transformers import set_seed

from langdc import checkpoint, devices, distributed
from langdc.config import FeatureType, load
from langdc.distributed import is_main_process, world_size
from langdc.features import FeatureStore, read_spec
from langdc.interfaces import Backbone
from langdc.log import console, get_logger, screen
from langdc.store import TensorStore
from langdc.tools.options import add_device, place
from langdc.train import chain, output
from langdc.train.objectives import objectives
from langdc.train.validation import split
from langdc.types import FrameSpec

logger = get_logger(__name__)

_PROBED = 3
"""Number of specs of each shape that are encoded first to measure size and time, after one warm-up."""
_READ_BACK = 512 * 10**6
"""Bytes read at most to measure the reading speed."""


@dataclass(frozen=True)
class _Job:
    """The different videos and images that one model's encoders read, without those that are `unreadable`."""

    name: str
    backbone: Backbone
    specs: list[FrameSpec]
    folder: Path
    dtype: FeatureType
    unreadable: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all is stored or planned, 1 when a video could not be read."""
    parser = argparse.ArgumentParser(prog="langdc data features", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted, as features=features/mine")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--train", "--stage", metavar="CONFIG", help="a training config, or a folder with a chain.yaml")
    which.add_argument("--eval", metavar="CONFIG", help="an evaluation config")
    add_device(parser)
    parser.add_argument("--plan", action="store_true", help="only say how large it gets and how long it takes")
    saliency = "also what encoders attend to, for compressors that choose by it"
    parser.add_argument("--saliency", action="store_true", help=saliency)
    options = parser.parse_intermixed_args(argv)
    if options.train is not None and options.dtype is not None:
        raise ValueError(f"--dtype {options.dtype}: a training config says its type itself, as precision=bfloat16.")
    out = screen(quiet=not is_main_process())
    distributed.start()
    jobs = _of_train(options) if options.train is not None else _of_eval(options)
    return 1 if sum(_run(job, options, out) for job in jobs) else 0


# ---- the videos and encoders


def _folder(folder: Path | None, path: str | Path) -> Path:
    if folder is None:
        raise ValueError(f"{path} does not say where encoder outputs are kept; add features=DIR.")
    return folder


def _of_train(options: argparse.Namespace) -> Iterator[_Job]:
    where = devices.named(options.device)
    for link in chain.read([options.train], options.overrides):
        config = link.config
        folder = _folder(config.features, link.name)
        set_seed(config.seed)  # parts drawn at random are those of the training
        start = output.latest(config.start) if config.start is not None else None
        model, _ = checkpoint.start(config.model, start, text=False, device=where)
        if config.precision == "bfloat16":  # as training holds frozen parts
            for weight in model.backbone.encoders.parameters():
                weight.data = weight.data.bfloat16() if weight.dtype == torch.float32 else weight.data
        objective = objectives.build(config.objective.name, **config.objective.settings)
        samples = [sample for side in split(model, objective, config) for sample in side]
        specs = dict.fromkeys(spec for sample in samples for spec in sample.specs)
        yield _Job(link.name, model.backbone, list(specs), folder, config.features_dtype)


def _of_eval(options: argparse.Namespace) -> Iterator[_Job]:
    from langdc.evaluate import matching, tasks  # not needed for a training
    from langdc.evaluate.loop import load_model
    from langdc.evaluate.settings import EvalConfig

    given = [f"{name}={value}" for name, value in place(options).items()]
    config = load(EvalConfig, options.eval, [*options.overrides, *given])
    folder = _folder(config.features, options.eval)
    task = tasks.build_task(config.task, config.allow_outside)
    asked = [record for record in task.records[: config.limit] if record.id not in task.broken]
    videos = [(record, task.path(record), task.clip) for record in asked]
    videos += [(record, path, lambda record: record) for record, path in matching.calibration_videos(config, task)]
    for entry in {entry.model_key: entry for entry in config.all_entries}.values():
        lm, specs, unreadable = load_model(entry, device=config.device, dtype=config.dtype), [], set()
        for record, path, part_of in videos:
            try:
                part = part_of(record)
                if not path.exists():
                    raise ValueError(f"There is no file {path}.")
                specs.append(lm.frame_spec(path, part.start, part.end, part.fps))
            except ValueError as error:
                unreadable.add(path)
                logger.warning("left out: %s", error)
        dtype = config.features_dtype
        yield _Job(str(entry.model), lm.model.backbone, list(dict.fromkeys(specs)), folder, dtype, len(unreadable))


# ---- storing it


def _run(job: _Job, options: argparse.Namespace, out: Console) -> int:
    """Store what is missing; the number of videos and images that are absent at the end."""
    store, specs = FeatureStore.of(job.backbone, job.folder, job.dtype, options.saliency), job.specs
    bar = track(specs, "Reading files", console=console, transient=True, disable=not is_main_process())
    keys = [store.key(spec) for spec in bar]
    missing = [specs[number] for number in store.store.missing(keys)]
    out.print(f"{job.name}: {len(specs)} videos and images, of which {len(specs) - len(missing)} are stored.")
    seconds = _plan(job, store, specs, missing, out) if is_main_process() and specs else 0.0
    if options.plan:
        return 0
    started, mine = time.perf_counter(), len(store.store.mine(keys))
    store.fill(specs, failed=lambda _, error: logger.warning("left out: %s", error))
    if mine:
        seconds = (time.perf_counter() - started) / mine
    distributed.barrier()
    left = store.store.missing(keys)
    if is_main_process():
        _report(store, [spec for number, spec in enumerate(specs) if number not in set(left)], seconds, out)
    absent = job.unreadable + len(left)
    if absent:
        out.print(f"{absent} videos or images could not be stored; the reasons are above.")
    return absent


def _plan(job: _Job, store: FeatureStore, specs: list[FrameSpec], missing: list[FrameSpec], out: Console) -> float:
    """Say how large all gets and how long it takes; the seconds that one takes. ValueError if the disk is too small."""
    shapes: dict[tuple[int, int], list[FrameSpec]] = {}
    for spec in specs:
        shapes.setdefault((spec.segments, spec.frames_per_segment), []).append(spec)
    absent = set(missing)
    needed = encoding = total = 0.0
    for (segments, frames), of_shape in shapes.items():
        size, seconds = _probe(store, of_shape)
        still = sum(spec in absent for spec in of_shape)
        needed, encoding, total = needed + still * size, encoding + still * seconds, total + len(of_shape) * seconds
        what = "image" if segments * frames == 1 else f"video of {segments} x {frames} frames"
        out.print(
            f"  {what}: {len(of_shape)} of them, {size / 1e6:.3g} MB each as {job.dtype}, "
            f"{size / 1e6:.3g} GB per 1,000; {seconds:.3g} s to decode and encode"
        )
    there = next(folder for folder in (job.folder, *job.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    hours = encoding / 3600 / world_size()
    out.print(f"To store: {needed / 1e9:.3g} GB, about {hours:.2g} h. Free in {job.folder}: {free / 1e9:.4g} GB.")
    if needed > free:
        raise ValueError(
            f"{needed / 1e9:.3g} GB do not fit into the {free / 1e9:.3g} GB that are free in {job.folder}. Set "
            "features_dtype=float8, another features=DIR, or train from the videos themselves."
        )
    return total / len(specs)


def _probe(store: FeatureStore, specs: list[FrameSpec]) -> tuple[float, float]:
    """Bytes and seconds of one video or image, on average over some that can be read; 0 if none can."""
    found: list[tuple[int, float]] = []
    for spec in specs[: 4 * _PROBED]:
        started = time.perf_counter()
        with suppress(ValueError):  # told when it is its turn
            size = sum(tensor.nbytes for tensor in store.encode(read_spec(spec), spec.path).values())
            found.append((size, time.perf_counter() - started))
        if len(found) > _PROBED:
            break
    size, seconds = np.mean(found[1:] or found or [(0, 0.0)], axis=0)
    return size, seconds


# ---- what it gives


def _report(store: FeatureStore, specs: list[FrameSpec], seconds: float, out: Console) -> None:
    """Say how large it is, how fast it is read, and after how many epochs that pays."""
    rate = 100 * store.found / max(store.found + store.made, 1)
    out.print(f"Hit rate: {rate:.1f} % ({store.found} were there, {store.made} were not).")
    if not specs:
        return
    read, size = _read_speed(store, specs)
    out.print(
        f"Stored: {size / 1e6:.3g} MB a video or image, {size / 1e6:.3g} GB per 1,000. "
        f"Read: {size / read / 1e6:.4g} MB/s, {read:.3g} s each, against {seconds:.3g} s from the file."
    )
    out.print(_pays(seconds, read))


def _read_speed(store: FeatureStore, specs: list[FrameSpec]) -> tuple[float, float]:
    """Mean seconds and bytes of a stored video or image, read in random order and not from memory.

    The files are dropped from the page cache first, where the system allows it, so that the disk is measured.
    """
    assert store.store.folder is not None
    for spec in specs if hasattr(os, "posix_fadvise") else []:
        with store.store.path(store.key(spec)).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    store.store = TensorStore(store.store.folder)  # without what is in memory
    read = count = 0
    started = time.perf_counter()
    for spec in random.Random(0).sample(specs, len(specs)):
        store.get(spec)
        read += sum(tensor.nbytes for tensor in store.store[store.key(spec)].values())
        count += 1
        if read > _READ_BACK:
            break
    return (time.perf_counter() - started) / count, read / count


def _pays(from_file: float, from_store: float) -> str:
    """After how many epochs storing is worth it: it costs a pass over the files, and saves the rest of each epoch."""
    if from_store >= from_file:
        return "It does not pay: reading what is stored takes as long as decoding and encoding again."
    epochs = from_file / (from_file - from_store)
    return f"It pays after {epochs:.2f} epochs: in epoch {math.floor(epochs) + 1} of a training, or its second reader."
