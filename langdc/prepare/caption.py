"""`langdc data caption VIDEOS --out FILE`: write captions of the segments of videos, as stage 2 learns them.

VIDEOS is a file of records or a folder of videos. A teacher describes each segment: a checkpoint (--teacher) or a model
behind an OpenAI-compatible endpoint (--endpoint URL --model NAME). A text model there (--text-model NAME) makes its
words dense, lists cues and counts them as density; without one the teacher's words are the captions, and there are no
cues. FILE.work keeps every text with its model and date; after an interruption the same command continues. Several
processes share the work: torchrun --nproc-per-node 2 data_prep/caption.py ..., --shard 1/8 on each machine, or --ray 8.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from langdc import distributed, jsonl
from langdc.data.records import QuestionRecord, Record, SegmentRecord, check_media, listed, read_records, write_records
from langdc.evaluate.models import weights_identity
from langdc.hashing import json_hash
from langdc.log import get_logger, screen, track
from langdc.prepare.captioning import Captioning, Job, on_ray
from langdc.prepare.teachers import DENSE, DESCRIBE, REWRITE
from langdc.text import counted
from langdc.tools.options import add_device, add_outside
from langdc.video import VIDEO_SUFFIXES, frame_files

logger = get_logger(__name__)

_FREE = ("videos", "out", "ask", "teacher", "endpoint", "endpoint_settings", "device", "batch", "shard", "ray")
"""Options that may change between two starts: they change no caption, or `_jobs` adds what does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Caption the videos of this process; 0, or 1 when a video could not be captioned."""
    options, out = _options(argv), screen(quiet=not distributed.is_main_process())
    jsonl.check_output(options.out)
    distributed.start()
    jobs, work = _jobs(options), options.out.with_name(f"{options.out.name}.work")
    if options.out.exists() and not work.is_dir():
        raise ValueError(f"{options.out} exists, and this command did not make it. Choose another --out.")
    if options.text_model is None:
        out.print("No --text-model: captions are the teacher's own words, without cues, density or a check of lengths.")
    number, count = options.shard
    file = work / f"{number}-of-{count}.jsonl"
    with jsonl.making_folder(work, "*.lock"), jsonl.locked(file.with_suffix(jsonl.LOCK), f"writes {file}"):
        done, mine = _lines(work), [job for job in jobs if job.group % count == number - 1]
        waiting = [job for job in mine if "clips" not in done.get(job.key, {})]
        files, twice = len({job.path for job in mine}), sum(len(job.others) for job in mine)
        clips = "" if files == len(mine) else f"{len(mine)} clips of "
        out.print(f"{clips}{files} videos and images, of which {len(mine) - len(waiting)} have captions.")
        if twice:
            shown = counted(twice, "record shows", "records show")
            out.print(f"{shown} a clip that an earlier one shows: described once, and asked with --ask there alone.")
        if waiting:
            out.print(f"Loading the teacher {options.teacher or options.model} ...")
        made = (on_ray(options, waiting) if options.ray else Captioning(options).lines(waiting)) if waiting else ()
        for line in track(made, len(waiting), "Captions"):
            if "failed" in line:
                logger.warning("no captions of %s: %s", line["id"], line["failed"])
            jsonl.append(file, line)
    return _finish(options, jobs, _lines(work), out)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="langdc data caption", description=__doc__)
    add = parser.add_argument
    add("videos", type=Path, help="a file of records, or a folder of videos")
    add("--out", type=Path, required=True, help="the file of records to write")
    add("--teacher", help="a checkpoint that describes: a folder, a Hugging Face id, or sample:langdc")
    add("--captioner", action="store_true", help="take the captions that the compressor of --teacher writes")
    add("--endpoint", metavar="URL", help="where an OpenAI-compatible interface begins, as http://server:8000/v1")
    add("--model", help="the teacher, as a model of the endpoint")
    add("--text-model", help="a model of the endpoint that makes descriptions dense and lists cues")
    settings = "its settings: key_variable, timeout, retries, pause, workers, options, as '{\"workers\": 32}'"
    add("--endpoint-settings", type=json.loads, default={}, metavar="JSON", help=settings)
    add("--segments", type=int, help="equal parts of a video, as many as the backbone makes (default: 4)")
    add("--seconds", type=float, help="about how long a segment is, in place of --segments")
    add("--scenes", action="store_true", help="make each scene a record, and cut that into segments")
    add("--prompt", help="what the teacher is asked, in place of our prompt")
    asked = "also write a question for each segment, as 'describe segment {number}'; the answer is its caption"
    add("--ask", metavar="TEXT", help=asked)
    add("--frames", type=int, help="frames of a segment (endpoint: 4; stock models: as they read a video)")
    add("--pixels", type=int, default=512, help="longest side of frames for an endpoint (default: 512)")
    add("--backbone", help="for stock models: a backbone by name")
    add_device(parser)
    add("--max-new-tokens", type=int, default=128, help="length limit of a description (default: 128)")
    band = "fewest and most words of a caption for each cue (default: 0.75 3)"
    add("--band", type=float, nargs=2, metavar=("LOW", "HIGH"), default=[0.75, 3.0], help=band)
    add("--batch", type=int, default=8, help="videos that are described together (default: 8)")
    add_outside(parser)
    add("--shard", metavar="I/N", help="do part I of N of the videos")
    shared = "N workers on the Ray cluster of RAY_ADDRESS, or on this machine"
    add("--ray", type=int, default=0, metavar="N", help=shared)
    options = parser.parse_args(argv)
    given, several = options, distributed.world_size() > 1
    number, _, count = (given.shard or f"{distributed.rank() + 1}/{distributed.world_size()}").partition("/")
    sharded = number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)
    numbers = [given.segments, given.frames, given.seconds, given.batch, given.pixels, given.max_new_tokens]
    at_endpoint = bool(given.model or given.text_model)
    own = given.teacher and not (given.prompt or given.seconds)
    rules = (
        ((given.teacher is None) != (given.model is None), "give a teacher: --teacher, or --endpoint and --model"),
        (
            at_endpoint == bool(given.endpoint or given.endpoint_settings),
            "--endpoint goes with --model or --text-model",
        ),
        (isinstance(given.endpoint_settings, dict), "--endpoint-settings is a JSON object"),
        (own or not given.captioner, "--captioner is for --teacher, and has a prompt and segments of its own"),
        (not (given.segments and given.seconds), "give --segments or --seconds, not both"),
        (
            all(each is None or each > 0 for each in numbers),
            "--segments, --seconds, --frames, --pixels, --batch and --max-new-tokens: all numbers are positive",
        ),
        (0 <= given.band[0] <= given.band[1], "--band is LOW and HIGH, as 0.75 3"),
        (sharded, "--shard is I/N with I from 1 to N, as 1/8"),
        (not (several and (given.shard or given.ray)), "a launcher shares the videos: leave out --shard and --ray"),
    )
    if broken := [rule for kept, rule in rules if not kept]:
        raise ValueError(f"langdc data caption: {'; '.join(broken)}.")
    options.shard = int(number), int(count)
    options.prompt = options.prompt or (DESCRIBE if options.text_model else DENSE)
    return options


def _jobs(options: argparse.Namespace) -> list[Job]:
    """The videos and images of the input, in order."""
    source, out = options.videos, options.out
    if not source.exists():
        raise ValueError(f"There is no {source}. Give a file of records, or a folder of videos.")
    if source.is_dir():
        names = sorted(file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file())
        shown = (name for name in names if name.lower().endswith(VIDEO_SUFFIXES) and "/." not in f"/{name}")
        root, records = source, [Record(id=name, video=name) for name in shown]
    else:
        root, records = source.parent, check_media(source, read_records(source), options.allow_outside)
        if out.exists() and out.samefile(source):
            raise ValueError(f"--out {out} is the input. Choose another file.")
    if (ask := options.ask) is not None:
        videos = options.segments != 1 and any(record.video is not None for record in records)
        if re.search("[{}]", ask.replace("{number}", "")) or (videos and "{number}" not in ask):
            raise ValueError(
                f"--ask {ask!r}: {{number}}, the one field there is, must stand where a segment's number does, without "
                "other braces; with --segments 1 it may be left out."
            )
    settings = {name: value for name, value in vars(options).items() if name not in (*_FREE, "allow_outside")}
    settings["request"] = options.endpoint_settings.get("options")
    deciding = [settings, REWRITE, options.teacher and weights_identity(options.teacher)]
    jobs: dict[tuple, Job] = {}
    for place, record in enumerate(records):
        if (path := record.media_path(root)) is not None:
            clip = (path.resolve(), record.start, record.end, record.fps)
            if (first := jobs.get(clip)) is not None:
                jobs[clip] = first._replace(others=(*first.others, (place, record)))
                continue
            stats = [file.stat() for file in (frame_files(path) if path.is_dir() else [path])]
            about = [record.id, record.start, record.end, record.fps, *((s.st_size, s.st_mtime_ns) for s in stats)]
            group = len(jobs) // options.batch
            jobs[clip] = Job(record, path.absolute(), json_hash([deciding, about]), group, place)
    if not jobs:
        raise ValueError(f"{source} holds no videos ({', '.join(VIDEO_SUFFIXES)}). Give a folder or records of some.")
    return list(jobs.values())


def _lines(work: Path) -> dict[str, dict]:
    """The lines of all processes, by job; one with captions counts before one that failed."""
    lines = [line for file in sorted(work.glob("*.jsonl")) for line in jsonl.read(file)]
    return {line["key"]: line for line in sorted(lines, key=lambda line: "clips" in line)}


def _finish(options: argparse.Namespace, jobs: list[Job], done: dict[str, dict], out: Console) -> int:
    """Write all records if every job is done, and print failed and flagged ones; returns the exit code."""
    here = [(job, done[job.key]) for job in jobs if job.key in done]
    failed = [f"{job.record.id}: {line['failed']}" for job, line in here if "failed" in line]
    clips = [clip for _, line in here for clip in line.get("clips", ())]
    each = [(f"{clip['id']}, segment {n}", made) for clip in clips for n, made in enumerate(clip["segments"], 1)]
    flagged = [f"{place}: {made['flagged']}" for place, made in each if made["flagged"]]
    if flagged:
        out.print(listed(f"{len(flagged)} captions have a length that does not follow their density", flagged))
    if failed:
        out.print(listed(f"{len(failed)} videos have no captions; the same command tries them again", failed))
    if len(here) < len(jobs):
        out.print(
            f"{len(here)} of {len(jobs)} videos are done. The process that does the last one writes {options.out}."
        )
    elif clips:
        made = [each for job, line in here for each in _records(options, job, line)]
        with jsonl.writing(options.out, shared=True) as partial:  # two shards may end at the same time
            write_records(partial, (record for _, record in sorted(made, key=lambda each: each[0])))
        out.print(f"Written: {options.out}, {len(made)} records.")
    return 1 if failed else 0


def _records(options: argparse.Namespace, job: Job, line: dict) -> Iterator[tuple[int, Record]]:
    """The records of a job, with their places: its own with captions, or one per scene, without what is asked about all
    of it.
    """
    media = Path(os.path.relpath(job.path, options.out.absolute().parent)).as_posix()
    for clip in line.get("clips", ()):
        changed = {name: clip[name] for name in ("id", "start", "end")}
        changed |= {"video" if job.record.video else "image": media}
        changed |= {"segments": [SegmentRecord(**made["segment"]) for made in clip["segments"]]}
        whole = clip["id"] == job.record.id
        asked = [*job.record.questions] if whole else []
        if options.ask:
            named = [(options.ask.replace("{number}", str(n)), s.caption) for n, s in enumerate(changed["segments"], 1)]
            asked += [QuestionRecord(kind="describe", question=text, answer=said) for text, said in named if said]
        messages = job.record.messages if whole and not asked else []
        yield job.place, job.record.model_copy(update={**changed, "questions": asked, "messages": messages})
        for place, record in job.others if whole else ():
            yield place, record.model_copy(update={"id": record.id, **{n: v for n, v in changed.items() if n != "id"}})
