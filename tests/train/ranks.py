"""Runs on several processes without a launcher: started clean and fast from one that has everything imported.

Data with captions of 0 to 100 tokens and text among the videos, and small recipes for them.
"""

import gc
import json
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langdc import checkpoint, jsonl
from langdc.config import ModelConfig, RunConfig, check
from langdc.data.records import QuestionRecord, Record, read_records, write_records
from langdc.sample.dataset import make_dataset
from langdc.train import run as runs
from langdc.train import stopping
from tests import tiny

ROOT = Path(__file__).parents[2]
SLOW_TO_IMPORT = ("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer")
LIMIT = 240.0
"""Seconds after which processes hang, as far as a test is concerned."""
WORDS = ("red", "ring", "left", "two", "moves", "blue")
LENGTHS = (0, 100, 1, 37, 0, 3, 80, 12)
POST = ["compressor.post_projector.*", "compressor.segment_marker.*"]
CAPTIONER = ["compressor.projectors.*", "compressor.captioner.*"]
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0}
RECIPES = ("stage1_backbone", "stage1", "stage2", "stage3", "distill")
"""The backbone's projectors with replies, the captioner's with captions, the two stages after these, and distilling."""


def make_data(folder: Path) -> Path:
    """Images and videos whose segments have captions of very different lengths, and questions without a video.

    Four samples a step leave a rest of one image, of three videos, and of three videos and texts.
    """
    make_dataset(folder, {"train": 7, "test": 0}, images=9, workers=1)
    for name in ("images", "train"):
        write_records(folder / f"{name}.jsonl", [_said(record) for record in read_records(folder / f"{name}.jsonl")])
    asked = [QuestionRecord(kind="say", question=f"say {word}", answer=word) for word in WORDS[:4]]
    write_records(folder / "text.jsonl", [Record(id=one.answer, questions=[one]) for one in asked])
    return folder


def _said(record: Record) -> Record:
    """The record with other captions; an image is asked for its own."""
    dice = random.Random(record.id)
    captions = [" ".join(dice.choices(WORDS, k=dice.choice(LENGTHS))) for _ in record.segments]
    said = [part.model_copy(update={"caption": text}) for part, text in zip(record.segments, captions, strict=True)]
    asked = [QuestionRecord(kind="describe", question="describe the image", answer=captions[0] or "nothing")]
    return record.model_copy(update={"segments": said, "questions": record.questions or asked})


def recipe(name: str, data: Path, output: Path, longest: int = max(LENGTHS)) -> list[RunConfig]:
    """Runs that start from each other, four samples a step, a line of the log and a checkpoint for every second step.

    Text is in the data of every run; those that learn captions leave it out. `longest`: where captions are cut.
    """
    images, videos, text = ([str(data / f"{part}.jsonl")] for part in ("images", "train", "text"))
    common = {"model": _model(name, longest).model_dump(mode="json"), "log_steps": 1, "save_steps": 2, "watchdog": 240}
    configs: list[RunConfig] = []
    for tree in _runs(name, images, videos, text):
        start = {"start": str(configs[-1].output)} if configs else {}
        place = {"output": str(output / tree.pop("name"))}
        configs.append(check(RunConfig, {**common, **start, **place, **tree}, "test"))
    return configs


def _model(name: str, longest: int) -> ModelConfig:
    if name == "stage1_backbone":
        return tiny.config("pool", sides=[3, 0])
    if name == "distill":
        return tiny.config("resampler", queries=3, depth=1)
    base = {"name": "pool", "sides": [3, 2]} if name == "stage3" else None
    return tiny.config(segment_marker=True, base=base, max_soft_tokens=longest, grounded=name == "stage2")


def _runs(name: str, images: list[str], videos: list[str], text: list[str]) -> list[dict]:
    """Beside what all recipes have: adapters in the captioner, words to start from, captions of its own, two losses."""
    if name == "stage1_backbone":
        return [_run("projectors", "answer", 6, [*images, *text, *videos], ["backbone.projectors.image.*"])]
    if name == "stage1":
        return [_run("projectors", "compress", 4, images + text, CAPTIONER[:1])]
    if name == "stage2":
        watch = {"data": videos[0], "every": 9, "captions": 1, "density": 1}
        align = {"name": "align", "segment_text": "[{number}]"}
        return [
            _run("base", "compress", 6, images + text, CAPTIONER[:1], compressor_lora=LORA, watch=watch),
            _run("density", "compress", 10, videos + text, CAPTIONER, watch=watch),
            _run("align", align, None, videos + text, POST, epochs=1),
            _run("post", "answer", 8, videos + text, POST, targets="none"),
            _run("both", "answer", 4, videos + text, ["compressor.*"], loss_weights={"caption": 0.5}),
        ]
    trained = ["compressor.*"] if name == "distill" else [*POST, "backbone.projectors.*"]
    more = {"questions_per_video": 3, "rates": {"*projector*": 5e-4}} if name == "stage3" else {}
    objective = "distill" if name == "distill" else "answer"
    return [_run("instruct", objective, 12, videos + text, trained, lora=LORA, **more)]


def _run(
    name: str, objective: object, steps: int | None, data: list[str], trainable: list[str], **more: object
) -> dict:
    top = {key: more.pop(key) for key in ("watch", "loss_weights") if key in more}
    train = {"batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.05, "steps": steps}
    train |= {"data": data, "trainable": trainable, **more}
    return {"name": name, "objective": objective, "train": train, **top}


def changed(configs: Sequence[RunConfig], output: Path, zero: int | None = None, **train: object) -> list[RunConfig]:
    """The same runs in another place, with other settings of all that make steps, under ZeRO or not."""
    file = _zero_file(output.parent, zero) if zero is not None else None
    found = []
    for config in configs:
        settings = config.train if config.train.steps is None else config.train.model_copy(update=train)
        start = None if config.start is None else output / config.start.name
        moved = {"output": output / config.output.name, "start": start, "train": settings, "deepspeed": file}
        found.append(config.model_copy(update=moved))
    return found


def _zero_file(folder: Path, number: int) -> Path:
    """The settings that ship; but parameters so small as these would not be shared out under ZeRO-3."""
    settings = json.loads((ROOT / "configs" / "deepspeed" / f"zero{number}.json").read_text())
    if number == 3:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"zero{number}.json"
    file.write_text(json.dumps(settings))
    return file


def start(count: int, *configs: RunConfig) -> Sequence[BaseProcess]:
    """Start runs, one after the other, on so many processes, as a launcher would; a single one gets no group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *SLOW_TO_IMPORT])
    before = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONPATH")}
    os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path))
    forkserver.ensure_running()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [context.Process(target=_rank, args=(number, count, port, configs)) for number in range(count)]
    for process in ranks:
        process.start()
    return ranks


def _rank(number: int, count: int, port: int, configs: Sequence[RunConfig]) -> None:
    gc.freeze()  # what was imported before the fork needs no looking through, which takes half a second each time
    if count > 1:
        here = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in here.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        for config in configs:
            runs.train(config)
    except stopping.Stopped:
        sys.exit(stopping.EXIT_CODE)


def finish(ranks: Sequence[BaseProcess]) -> list[int | None]:
    """Wait for all, and return how they ended; what hangs is killed, and ended by -9."""
    deadline = time.monotonic() + LIMIT
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    kill(ranks)
    return [process.exitcode for process in ranks]


def kill(ranks: Sequence[BaseProcess]) -> None:
    """End all at once, with no chance to tidy up."""
    for process in ranks:
        process.kill()
    for process in ranks:
        process.join()


def run(count: int, *configs: RunConfig) -> None:
    """Runs from where they stand to their end, one after the other."""
    assert finish(start(count, *configs)) == [0] * count


def run_until(count: int, config: RunConfig, lines: int, end: Callable[[Sequence[BaseProcess]], None] = kill) -> int:
    """Start a run and, when its log has so many lines, `end` it; returns how many lines it had then."""
    ranks = start(count, config)
    log, deadline = config.output / "log.jsonl", time.monotonic() + LIMIT
    try:
        while len(jsonl.read(log)) < lines:
            assert all(process.is_alive() for process in ranks), [process.exitcode for process in ranks]
            assert time.monotonic() < deadline, f"no line {lines} within {LIMIT} s"
            time.sleep(0.005)
        end(ranks)
    finally:
        kill(ranks)
    return len(jsonl.read(log))


def losses(configs: Sequence[RunConfig]) -> dict[tuple[str, int], float]:
    """The loss of every step, by run and step."""
    lines = [(config.output.name, line) for config in configs for line in jsonl.read(config.output / "log.jsonl")]
    return {(name, line["step"]): line["loss"] for name, line in lines}


def _felt(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without biases of keys: they change no attention; their gradients are rounding, which Adam makes large."""
    return {name: t.chunk(2)[1] if name.endswith("key_value.bias") else t for name, t in tensors.items()}


def assert_close(found: Sequence[RunConfig], expected: Sequence[RunConfig], tolerance: float) -> None:
    """Every loss; trained numbers to a tenth of what a step (of 1e-3) moves them; every caption that was written."""
    assert list(losses(found)) == list(losses(expected))
    assert losses(found) == pytest.approx(losses(expected), abs=tolerance)
    for one, other in zip(found, expected, strict=True):
        ours, theirs = (_felt(load_file(config.output / checkpoint.WEIGHTS)) for config in (one, other))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        seen, wanted = (jsonl.read(config.output / "captions.jsonl") for config in (one, other))
        assert seen == wanted
