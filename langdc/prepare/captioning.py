"""From videos to lines about their captions: cut, decode, describe, make dense; here or on a Ray cluster.

All steps are at work at once: threads decode ahead of the teacher, and requests are under way beside both. Which videos
are described together depends on their places in the input alone, so captions do not depend on who writes them.
"""

import json
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from langdc.data.records import Record
from langdc.prepare.scenes import scene_bounds
from langdc.prepare.teachers import REWRITE, EndpointTeacher, TextModel, VideoTeacher, plain_target

_SAID = ("teacher", "captioner", "model", "prompt", "text_model")
"""Options that a line repeats, as they say where its texts are from."""


class Job(NamedTuple):
    """A video or image that is captioned. `key`: hash of it and the settings; `group`: described at once.

    `record` is the first that shows it, on place `place` of the input; `others` show the same clip.
    """

    record: Record
    path: Path
    key: str
    group: int
    place: int = 0
    others: tuple[tuple[int, Record], ...] = ()


class _Clip(NamedTuple):
    """A job's video, or a scene of it, with the result of the last step, or the ValueError that stopped it."""

    job: Job
    record: Record
    made: Any = None


class Captioning:
    """The captions of jobs, by the teacher and the text model that the options name."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.text = TextModel(options) if options.text_model else None
        self.teacher = VideoTeacher(options) if options.teacher else EndpointTeacher(options)
        self.requests = options.endpoint_settings.get("workers", 8)

    def lines(self, jobs: Iterable[Job]) -> Iterator[dict[str, Any]]:
        """A line for each job, in order: its captions and the texts behind them, or why there are none."""
        threads = min(16, torch.get_num_threads())
        decoding, asking = ThreadPoolExecutor(threads), ThreadPoolExecutor(self.requests)
        try:
            clips = (clip for cut in _ahead(decoding, self._cut, jobs, 2 * threads) for clip in cut)
            read = _ahead(decoding, partial(_tried, self._read), clips, 2 * max(self.options.batch, threads))
            if self.options.teacher:
                described = self._in_batches(read)
            else:
                described = _ahead(asking, partial(_tried, self._asked), read, 2 * self.requests)
            made = _ahead(asking, partial(_tried, self._targets), described, 2 * self.requests if self.text else 1)
            for job, parts in groupby(made, key=lambda clip: clip.job):
                yield self._line(job, list(parts))
        finally:
            for pool in (decoding, asking):  # requests under way end, those that wait do not begin
                pool.shutdown(cancel_futures=True)

    def _cut(self, job: Job) -> list[_Clip]:
        record = job.record
        if not self.options.scenes or record.image is not None:
            return [_Clip(job, record)]
        try:
            bounds = scene_bounds(job.path, record.start, record.end, record.fps)
        except ValueError as error:
            return [_Clip(job, record, error)]
        places = [{"id": f"{record.id}#{n}", "start": a, "end": b} for n, (a, b) in enumerate(bounds, 1)]
        return [_Clip(job, record.model_copy(update=place)) for place in places]

    def _read(self, clip: _Clip) -> Any:
        return self.teacher.read(clip.record, clip.job.path)

    def _in_batches(self, clips: Iterable[_Clip]) -> Iterator[_Clip]:
        for _, group in groupby(clips, key=lambda clip: clip.job.group):
            while batch := list(islice(group, self.options.batch)):
                yield from self._described(batch)

    def _described(self, batch: Sequence[_Clip]) -> list[_Clip]:
        read = [clip.made for clip in batch if not isinstance(clip.made, ValueError)]
        with suppress(ValueError):  # of one of them, which is found below
            texts = iter(self.teacher.describe(read))
            return [clip if isinstance(clip.made, ValueError) else clip._replace(made=next(texts)) for clip in batch]
        return [_tried(self._asked, clip) for clip in batch]

    def _asked(self, clip: _Clip) -> list[str]:
        return self.teacher.describe([clip.made])[0]

    def _targets(self, clip: _Clip) -> Any:
        return list(map(self.text.target if self.text else plain_target, clip.made))

    def _line(self, job: Job, clips: Sequence[_Clip]) -> dict[str, Any]:
        date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"key": job.key, "id": job.record.id, "date": date, **{n: getattr(self.options, n) for n in _SAID}}
        for clip in clips:
            if isinstance(clip.made, ValueError):
                return {**line, "failed": str(clip.made)}
        places = [{name: getattr(clip.record, name) for name in ("id", "start", "end")} for clip in clips]
        segments = [[{**t._asdict(), "segment": t.segment.model_dump()} for t in clip.made] for clip in clips]
        parts = [{**place, "segments": made} for place, made in zip(places, segments, strict=True)]
        return {**line, "rewrite": REWRITE if self.text else None, "clips": parts}


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Iterable[Any], room: int) -> Iterator[Any]:
    """What `work` makes of items, in order, by threads that are up to `room` items ahead."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= room:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()


def _tried(work: Callable[[_Clip], Any], clip: _Clip) -> _Clip:
    """A clip with what `work` makes of it, or with the error; one that is `fatal` concerns all clips, and is raised."""
    if isinstance(clip.made, ValueError):
        return clip
    try:
        return clip._replace(made=work(clip))
    except ValueError as error:
        if getattr(error, "fatal", False):
            raise
        return clip._replace(made=error)


class _RayWorker:
    """A process of a Ray cluster: numbers of groups in, lines out."""

    def __init__(self, options: Namespace, groups: list[list[Job]]) -> None:
        self.options, self.groups, self.captioning = options, groups, None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        lines = []
        try:
            self.captioning = self.captioning or Captioning(self.options)
            for line in self.captioning.lines(job for number in batch["id"] for job in self.groups[number]):
                lines.append(json.dumps(line))
        except ValueError as error:  # Ray would try again, and wrap it
            lines.append(json.dumps({"ended": str(error)}))
        return {"line": lines}


def on_ray(options: Namespace, jobs: Iterable[Job]) -> Iterator[dict[str, Any]]:
    """As `Captioning.lines`, in any order, by `options.ray` workers of a Ray cluster; ValueError without Ray."""
    try:
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"--ray needs Ray Data ({error}): pip install 'langdc[ray]'. Or leave --ray out.") from None
    groups = [list(group) for _, group in groupby(jobs, key=lambda job: job.group)]
    ray.init(ignore_reinit_error=True)
    ray.data.DataContext.get_current().enable_progress_bars = False
    there = ray.cluster_resources()
    gpus = int(bool(options.teacher and options.device != "cpu" and there.get("GPU")))
    if options.ray > (room := int(there["GPU" if gpus else "CPU"])):
        raise ValueError(f"--ray {options.ray}: the cluster has room for {room} workers. Give as many, or fewer.")
    rows = [{"id": number} for number in range(len(groups))]
    numbers = ray.data.from_items(rows, override_num_blocks=min(len(rows), 16 * options.ray))
    pool = ray.data.ActorPoolStrategy(size=min(options.ray, len(groups)))
    each = {"num_cpus": 1, "num_gpus": gpus, "batch_size": 2, "fn_constructor_args": (options, groups)}
    for row in numbers.map_batches(_RayWorker, compute=pool, **each).iter_rows():
        line = json.loads(row["line"])
        if "ended" in line:
            raise ValueError(line["ended"])
        yield line
