"""Make the sample set: short mp4 files and images of moving shapes, with captions, cues and questions about them.

Every file has random numbers of its own (seed, split, index), so the set does not depend on the number of processes,
and an interrupted run can be resumed.
"""

import multiprocessing
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from langdc import jsonl
from langdc.data.records import ObjectRecord, QuestionRecord, Record, SegmentRecord, write_records
from langdc.log import track
from langdc.registry import nearest
from langdc.sample.questions import GROUPS, Question, ask_all
from langdc.sample.render import draw, draw_video
from langdc.sample.scenes import (
    FPS,
    FRAMES_PER_SEGMENT,
    LATEST,
    SIZE,
    Segment,
    Thing,
    as_text,
    caption,
    sample_segment,
    sample_video,
)
from langdc.video import write_video

VIDEOS: Mapping[str, int] = {"train": 2400, "test": 400}
IMAGES = 2400
ROUNDS = {"train": 2, "test": 1}
"""How often each category of question is drawn for a video of a split; duplicates are left out."""

_STREAM = {"train": 0, "test": 1, "images": 2}  # never renumber: it would change the files of a seed
_LABELS = {kind: {"group": group} for group, kinds in GROUPS.items() for kind in kinds}
_FORMAT = 5  # raise when a change of this module changes what a seed makes
_FINISHED, _UNFINISHED = "dataset.json", "dataset.json.partial"
_CHUNK = 32


class _Task(NamedTuple):
    folder: Path
    split: str
    number: int
    seed: int
    places: bool

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, _STREAM[self.split], self.number])


def make_dataset(
    folder: str | Path,
    videos: Mapping[str, int] = VIDEOS,
    images: int = IMAGES,
    seed: int = 0,
    workers: int | None = None,
    places: bool = False,
) -> bool:
    """Make `folder`/{train,test,images}.jsonl with their videos and images; False if they are all there already.

    `videos`: how many for each split; `workers`: processes (None: one per core). `places`: captions and attributes also
    say where objects are; videos and other questions stay the same. Files that exist are not made again.
    ValueError for a folder that holds something else or a set with other settings.
    """
    folder, sizes = Path(folder), _sizes(videos, images)
    if seed < 0 or (workers is not None and workers < 1):
        raise ValueError(f"The seed is {seed} and workers {workers}; give a seed of 0 or more, and 1 process or more.")
    settings = {"format": _FORMAT, "seed": seed, **({"places": True} if places else {}), **sizes}
    if _finished(folder, settings):  # also where nothing can be written
        return False
    with jsonl.locked(folder / jsonl.LOCK, f"is making the sample set in {folder}"):
        return _made(folder, sizes, settings, workers)


def _made(folder: Path, sizes: dict[str, int], settings: dict[str, int], workers: int | None) -> bool:
    if _finished(folder, settings):  # by another process
        return False
    unfinished = folder / _UNFINISHED
    jsonl.write_lines(unfinished, [settings])  # first: a folder without it counts as somebody else's
    for name in ("videos", "images"):
        (folder / name).mkdir(exist_ok=True)
    made: dict[str, list[Record]] = defaultdict(list)
    common = settings["seed"], "places" in settings
    tasks = [_Task(folder, split, number, *common) for split, size in sizes.items() for number in range(size)]
    for split, record in _make_all(tasks, workers):
        made[split].append(record)
    for split, records in made.items():
        write_records(folder / f"{split}.jsonl", records)
    os.sync()  # videos and images; a name may be on the disk before what it names
    unfinished.rename(folder / _FINISHED)
    (folder / jsonl.LOCK).unlink()
    return True


def majority_chance(records: Iterable[Record]) -> dict[str, float]:
    """By category of question, the accuracy of always giving its most frequent answer."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for question in record.questions:
            answers[question.kind][question.answer] += 1
    return {kind: max(seen.values()) / seen.total() for kind, seen in answers.items()}


def _sizes(videos: Mapping[str, int], images: int) -> dict[str, int]:
    sizes = {**videos, "images": images}
    for split, number in sizes.items():
        if split not in _STREAM:
            raise ValueError(f"There is no sample split {split!r}.{nearest(split, ROUNDS)}")
        if number < 0:
            raise ValueError(f"{number} {split} were asked for; give 0 or more.")
    return {split: number for split, number in sizes.items() if number}


def _finished(folder: Path, settings: dict[str, int]) -> bool:
    """Whether the set is there; ValueError if something else is."""
    finished = (folder / _FINISHED).is_file()
    made_with = jsonl.read(folder / (_FINISHED if finished else _UNFINISHED))
    if not made_with and jsonl.names_in(folder):
        raise ValueError(f"{folder} holds files that are no sample set. Choose an empty or a new folder.")
    if made_with and made_with != [settings]:
        raise ValueError(
            f"{folder} holds a sample set made with {made_with[0]}, asked for is {settings}. Choose another folder, or "
            "delete this one."
        )
    sizes = {split: settings[split] for split in _STREAM if split in settings}
    media = sum(len(jsonl.names_in(folder / name)) for name in ("videos", "images"))
    return finished and media >= sum(sizes.values()) and all((folder / f"{split}.jsonl").is_file() for split in sizes)


def _make_all(tasks: list[_Task], workers: int | None) -> Iterator[tuple[str, Record]]:
    """Make every file, in order, with a progress bar."""
    processes = workers or min(os.cpu_count() or 1, max(1, len(tasks) // (2 * _CHUNK)))
    if processes == 1:
        yield from track(map(_make, tasks), len(tasks), "Sample set")
        return
    # Ctrl-C reaches all processes of a terminal; the main one says so
    ignore = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), **ignore) as pool:
        yield from track(pool.map(_make, tasks, chunksize=_CHUNK), len(tasks), "Sample set")


def _make(task: _Task) -> tuple[str, Record]:
    return task.split, _make_image(task) if task.split == "images" else _make_video(task)


def _is_complete(path: Path) -> bool:
    """Whether a file is complete: after a power cut it may be empty, or end at the end of a page."""
    return path.exists() and path.stat().st_size % 4096 > 0


def _make_video(task: _Task) -> Record:
    rng, name = task.rng, f"{task.split}-{task.number:06d}"
    scenes = sample_video(rng)
    asked = {q.text: q for _ in range(ROUNDS[task.split]) for q in ask_all(rng, scenes)}
    segments = [_segment(scene, task.places) for scene in scenes]
    wanted = _requests([segment.caption for segment in segments]) if task.split == "train" else []
    path = task.folder / "videos" / f"{name}.mp4"
    if not _is_complete(path):
        write_video(path, draw_video(scenes, rng), FPS)
    return Record(
        id=name,
        video=f"videos/{name}.mp4",
        segments=segments,
        questions=[
            QuestionRecord(kind=q.kind, question=q.text, answer=q.answer, labels=_LABELS.get(q.kind, {}))
            for q in [*asked.values(), *wanted]
        ],
    )


def _make_image(task: _Task) -> Record:
    rng, name = task.rng, f"image-{task.number:06d}"
    scene = sample_segment(rng)
    path = task.folder / "images" / f"{name}.png"
    if not _is_complete(path):
        frames = draw(scene, rng)
        with jsonl.writing(path, sync=False) as partial:
            Image.fromarray(frames[rng.integers(LATEST, len(frames))]).save(partial, format="PNG")
    said = _segment(scene, task.places, motions=False)
    asked = [QuestionRecord(kind="describe_image", question="describe the image", answer=said.caption)]
    return Record(id=name, image=f"images/{name}.png", segments=[said], questions=asked if said.caption else [])


def _segment(scene: Segment, places: bool, motions: bool = True) -> SegmentRecord:
    """One entry per object in each list of cues, in the order of the caption; attributes are colours, then places.

    With `motions`, of a video, also its objects and labels.
    """
    objects = [_object(thing) for thing in scene if motions]
    return SegmentRecord(
        caption=caption(scene, motions, places),
        density=len(scene),
        subjects=[thing.shape for thing in scene],
        attributes=[thing.colour for thing in scene] + [thing.place for thing in scene if places],
        actions=[thing.motion for thing in scene if motions],
        **({"objects": objects, "labels": {"background": scene.background}} if motions else {}),
    )


def _object(thing: Thing) -> ObjectRecord:
    return ObjectRecord(
        boxes=[_box(thing, frame) if frame >= thing.start else None for frame in range(FRAMES_PER_SEGMENT)],
        labels={"colour": thing.colour, "shape": thing.shape, "motion": thing.motion, "start": str(thing.start)},
        phrase=caption(Segment((thing,))),
    )


def _box(thing: Thing, frame: int) -> list[float]:
    x, y = thing.centre(frame)
    edges = (x - thing.radius, y - thing.radius, x + thing.radius + 1, y + thing.radius + 1)
    return [edge / SIZE for edge in edges]


def _requests(captions: list[str]) -> list[Question]:
    """Requests to describe each segment that is not empty, and the whole video."""
    each = [Question("describe", f"describe segment {n}", text) for n, text in enumerate(captions, 1) if text]
    return [*each, Question("describe_video", "describe the video", as_text(captions))]
