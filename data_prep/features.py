"""python data_prep/features.py --stage CONFIG | --eval CONFIG [features=DIR] [features_dtype=TYPE] [key=value ...]

Store what the encoders see of every video and image that a training stage or an evaluation reads, so that it reads
that instead. Prints how large it gets before it begins, and afterwards how fast it is read and after how many epochs
it pays; with --plan it only looks. The same command goes on after an interruption.
Several processes share the work: torchrun --nproc-per-node 2 data_prep/features.py ...
"""

import argparse
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from langdc.training import runs, samples
from rich.console import Console
from rich.progress import track
from transformers import set_seed

from langdc import checkpoint, devices, distributed
from langdc.config import FeatureType, StageConfig, load
from langdc.distributed import is_main_process, world_size
from langdc.evaluation import matching, tasks
from langdc.evaluation.loop import load_model
from langdc.evaluation.settings import EvalConfig
from langdc.features import FeatureStore, FrameSpec
from langdc.interfaces import Backbone
from langdc.log import get_logger
from langdc.shards import SHARD_BYTES

logger = get_logger("data_prep.features")

PROBED = 3
"""Of each kind of media, so many are encoded first to know size and time, after one to warm up."""
READ_BACK = 512 * 10**6
"""At most so many bytes are read to measure how fast that is."""
MANY = 20_000


@dataclass(frozen=True)
class Job:
    """What one model's encoders are to see. `failed` says why some clips cannot be read."""

    name: str
    backbone: Backbone
    clips: list[FrameSpec]
    folder: Path
    dtype: FeatureType
    failed: dict[str, str] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all is stored or planned, 1 when a video could not be, 2 for mistakes, 3 for a disk that is full."""
    options = _parser().parse_intermixed_args(argv)
    out = Console(soft_wrap=True, highlight=False, quiet=not is_main_process())
    try:
        distributed.start()
        jobs = _of_stage(options) if options.stage is not None else _of_eval(options)
        left = sum([_run(job, options, out) for job in jobs])
    except KeyboardInterrupt:
        out.print("Interrupted. What was encoded is stored; the same command goes on.")
        return 130
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"{distributed.process_name()}error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 3
    return 1 if left else 0


# ---- what is to be seen


def _folder(folder: Path | None, path: Path) -> Path:
    if folder is None:
        raise ValueError(f"{path} does not say where encoder outputs are kept; add features=DIR.")
    return folder


def _of_stage(options: argparse.Namespace) -> Iterator[Job]:
    config = load(StageConfig, options.stage, options.overrides)
    folder = _folder(config.features, options.stage)
    set_seed(config.seed)  # parts drawn at random are those of the training
    model, _ = checkpoint.start(config.model, runs.latest(config.start) if config.start is not None else None)
    files = list(dict.fromkeys(path for phase in config.phases for path in phase.data))
    clips = [sample.clip for sample in samples.read_samples(files, model) if sample.clip is not None]
    yield Job(config.stage, model.backbone, clips, folder, config.features_dtype)


def _of_eval(options: argparse.Namespace) -> Iterator[Job]:
    config = load(EvalConfig, options.eval, options.overrides)
    folder = _folder(config.features, options.eval)
    task = tasks.build(config.task.name, **config.task.settings)
    videos = [(record, task.path(record), task.clip) for record in task.records[: config.limit]]
    if config.calibration is not None:
        others = matching.other_videos(config.calibration, task)
        videos += [(record, path, lambda record: record) for record, path in others]
    for row in {(str(row.model), repr(row.backbone)): row for row in config.all_rows}.values():
        lm, clips, failed = load_model(row), [], {}
        for record, path, part_of in videos:
            try:
                part = part_of(record)
                clips.append(lm.clip(path, part.start, part.end, part.fps))
            except ValueError as error:
                failed[str(path)] = str(error)
        yield Job(str(row.model), lm.model.backbone, clips, folder, config.features_dtype, failed)


# ---- storing it


def _run(job: Job, options: argparse.Namespace, out: Console) -> int:
    """Store what is missing; how many clips are not there at the end."""
    job.backbone.to(devices.device())
    unread = len(job.failed)
    store = FeatureStore.of(job.backbone, job.folder, job.dtype, options.saliency, options.shard_mb * 10**6)
    clips = _present(job)
    for clip in track(
        clips, "Reading files", console=Console(stderr=True), transient=True, disable=not is_main_process()
    ):
        store.key(clip)  # remembered
    keys = [store.key(clip) for clip in clips]
    missing = [clips[number] for number in store.store.missing(keys)]
    out.print(f"{job.name}: {len(clips)} videos and images, of which {len(clips) - len(missing)} are stored.")
    seconds = _plan(job, store, clips, missing, out) if is_main_process() and clips else 0.0
    if options.plan:
        return 0
    started, mine = time.perf_counter(), len(store.store.mine(keys))
    store.fill(clips, failed=lambda clip, error: _fail(job, clip, error))
    if mine:
        seconds = (time.perf_counter() - started) / mine
    distributed.barrier()
    left = store.store.missing(keys)
    if is_main_process():
        _report(store, [clip for number, clip in enumerate(clips) if number not in set(left)], seconds, out)
    lacking = unread + len(set(job.clips)) - len(clips) + len(left)
    if lacking:
        out.print(f"{lacking} videos or images could not be stored; the reasons are above.")
    return lacking


def _present(job: Job) -> list[FrameSpec]:
    """The different clips whose files are there."""
    found = []
    for clip in dict.fromkeys(job.clips):
        if clip.path.exists():
            found.append(clip)
        else:
            _fail(job, clip, ValueError(f"There is no file {clip.path}."))
    return found


def _fail(job: Job, clip: FrameSpec, error: ValueError) -> None:
    job.failed[str(clip.path)] = str(error)
    logger.warning("left out: %s", error)


def _plan(job: Job, store: FeatureStore, clips: list[FrameSpec], missing: list[FrameSpec], out: Console) -> float:
    """Say how large all gets and how long it takes; the seconds a clip takes. ValueError if the disk is too small."""
    kinds: dict[tuple[int, int], list[FrameSpec]] = {}
    for clip in clips:
        kinds.setdefault((clip.segments, clip.frames_per_segment), []).append(clip)
    lacking = set(missing)
    needed = encoding = total = 0.0
    for (segments, frames), of_kind in kinds.items():
        size, seconds = _probe(store, of_kind)
        still = sum(clip in lacking for clip in of_kind)
        needed, encoding, total = needed + still * size, encoding + still * seconds, total + len(of_kind) * seconds
        what = "image" if segments * frames == 1 else f"video of {segments} x {frames} frames"
        out.print(
            f"  {what}: {len(of_kind)} of them, {size / 1e6:.3g} MB each as {job.dtype}, "
            f"{size / 1e6:.3g} GB per 1,000; {seconds:.3g} s to decode and encode"
        )
    there = next(folder for folder in (job.folder, *job.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    hours = encoding / 3600 / world_size()
    out.print(f"To store: {needed / 1e9:.3g} GB, about {hours:.2g} h. Free in {job.folder}: {free / 1e9:.4g} GB.")
    if len(clips) > MANY:
        out.print(f"More than {MANY:,} videos and images: features of full size are larger than most disks.")
    if needed > free:
        raise ValueError(
            f"{needed / 1e9:.3g} GB do not fit into the {free / 1e9:.3g} GB that are free in {job.folder}. Set "
            "features_dtype=float8, another features=DIR, or train from the videos themselves."
        )
    return total / len(clips)


def _probe(store: FeatureStore, clips: list[FrameSpec]) -> tuple[float, float]:
    """Bytes and seconds of one clip, on average over some that can be read; 0 if none can."""
    found: list[tuple[int, float]] = []
    for clip in clips[: 4 * PROBED]:
        started = time.perf_counter()
        with suppress(ValueError):  # told when it is its turn
            size = sum(tensor.nbytes for tensor in store.encode(clip.read(), clip.path).values())
            found.append((size, time.perf_counter() - started))
        if len(found) > PROBED:
            break
    counted = found[1:] or found
    if not counted:
        return 0.0, 0.0
    return sum(size for size, _ in counted) / len(counted), sum(taken for _, taken in counted) / len(counted)


# ---- what it gives


def _report(store: FeatureStore, clips: list[FrameSpec], seconds: float, out: Console) -> None:
    """Say how large it is, how fast it is read, and after how many epochs that pays."""
    out.print(f"Hit rate: {100 * store.hit_rate:.1f} % ({store.found} were there, {store.made} were not).")
    if not clips:
        return
    read, size = read_speed(store, clips)
    rate = size / read
    out.print(
        f"Stored: {size / 1e6:.3g} MB a video or image, {size / 1e6:.3g} GB per 1,000. "
        f"Read: {rate / 1e6:.4g} MB/s, {read:.3g} s each, against {seconds:.3g} s from the file."
    )
    out.print(pays(seconds, read))


def read_speed(store: FeatureStore, clips: list[FrameSpec]) -> tuple[float, float]:
    """Seconds and bytes that a stored clip takes on average, read in random order by a fresh reader.

    What the system still holds of the files is dropped first where it lets us, so that the disk is measured.
    """
    assert store.store.folder is not None
    for path in (store.store.folder / "shards").glob("*.safetensors"):
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    fresh, read, count = store.fresh(), 0, 0
    started = time.perf_counter()
    for clip in random.Random(0).sample(clips, len(clips)):
        fresh.get(clip)
        read, count = read + sum(t.nbytes for t in fresh.store[fresh.key(clip)].values()), count + 1
        if read > READ_BACK:
            break
    return (time.perf_counter() - started) / count, read / count


def pays(from_file: float, from_store: float) -> str:
    """After how many epochs storing is worth it: it costs a pass over the files, and saves the rest of each epoch."""
    if from_store >= from_file:
        return "It does not pay: reading what is stored takes as long as decoding and encoding again."
    epochs = from_file / (from_file - from_store)
    return f"It pays after {epochs:.2f} epochs: in epoch {math.floor(epochs) + 1} of a training, or its second reader."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="data_prep/features.py",
        description="Store what encoders see of a data set; the same command goes on after an interruption.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted, as features=features/mine")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--stage", type=Path, metavar="CONFIG", help="settings of a training stage")
    which.add_argument("--eval", type=Path, metavar="CONFIG", help="settings of an evaluation")
    parser.add_argument("--plan", action="store_true", help="only say how large it gets and how long it takes")
    parser.add_argument(
        "--saliency", action="store_true", help="also what encoders attend to, for compressors that choose by it"
    )
    parser.add_argument(
        "--shard-mb",
        type=float,
        default=SHARD_BYTES / 10**6,
        metavar="MB",
        help="size of a file (default: %(default).0f)",
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    return parser


if __name__ == "__main__":
    sys.exit(main())
