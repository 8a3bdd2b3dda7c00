"""Small evaluations for tests: real videos and tiny models with random weights, or answers made up."""

from pathlib import Path

import numpy as np

from langdc import checkpoint
from langdc.config import check
from langdc.data.records import QuestionRecord, Record, SegmentRecord, write_records
from langdc.evaluate.settings import EvalConfig
from langdc.pipeline import VideoLM
from langdc.sample.questions import ask_all
from langdc.sample.render import draw_video
from langdc.sample.scenes import FPS, caption, sample_video
from langdc.video import write_video
from tests import tiny


def write_data(folder: Path, videos: int = 3, seed: int = 5) -> Path:
    """A record file with real mp4 files, as data_prep/sample.py makes them."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(videos):
        scenes = sample_video(rng)
        name = f"v{number}"
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        write_video(folder / "videos" / f"{name}.mp4", draw_video(scenes, rng), FPS)
        segments = [SegmentRecord(caption=caption(scene), density=len(scene)) for scene in scenes]
        questions = [QuestionRecord(kind=q.kind, question=q.text, answer=q.answer) for q in ask_all(rng, scenes)]
        records.append(Record(id=name, video=f"videos/{name}.mp4", segments=segments, questions=questions))
    write_records(folder / "test.jsonl", records)
    return folder / "test.jsonl"


def save_model(folder: Path, compressor: str) -> Path:
    """A checkpoint of a tiny model, as if stage 3 had made it."""
    model = tiny.model(compressor)
    names = [name for name, _ in model.named_parameters()]
    info = {"stage": "stage3", "training": {"samples": 640, "steps": 10, "flops": 2.5e9, "seconds": 3.0}}
    checkpoint.save(model, folder, tensors=checkpoint.own_tensors(model, names), info=info)
    return folder


def config(folder: Path, **changes) -> EvalConfig:
    """An evaluation of both tiny models and every control; files lie in `folder`."""
    langdc, pool = str(folder / "langdc"), str(folder / "pool")
    rows = [
        {"name": "langdc", "model": langdc},
        {"name": "pool 3", "model": pool},
        {"name": "text", "model": langdc, "control": "caption_text"},
        {"name": "random", "model": pool, "control": "random_tokens", "match": "langdc"},
        {"name": "random mean", "model": pool, "control": "random_tokens_mean", "match": "langdc"},
        {"name": "frames", "model": pool, "control": "uniform_frames", "match": "langdc"},
    ]
    task = {"name": "sample", "data": str(folder / "data" / "test.jsonl")}
    tree = {"task": task, "entries": rows, "output": str(folder / "eval"), "reference": "pool 3", "max_new_tokens": 3}
    return check(EvalConfig, {**tree, "batch_size": 2, "timing_videos": 1, "warmup_videos": 1, **changes}, "test")


def prepare(folder: Path) -> Path:
    """Data and both models."""
    write_data(folder / "data")
    save_model(folder / "langdc", "langdc")
    save_model(folder / "pool", "pool")
    return folder


class Counting(VideoLM):
    """A model that notes which files it really decoded."""

    opened: list[str]

    def open(self, path, *args, same=None, **options):
        if same is None:
            type(self).opened.append(Path(path).name)
        return super().open(path, *args, same=same, **options)
