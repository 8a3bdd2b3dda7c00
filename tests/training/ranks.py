"""Stages on several processes without a launcher: started clean and fast from one that has everything imported.

Data with captions of 0 to 100 tokens and text among the videos, and small recipes of all stages for them.
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
from langdc.training import stages, stopping
from safetensors.torch import load_file

from langdc import checkpoint, jsonl
from langdc.config import ModelConfig, StageConfig, check
from langdc.data.records import QuestionRecord, Record, read_records, write_records
from langdc.sample.dataset import make_dataset
from langdc.train.progress import read_log
from tests import tiny

ROOT = Path(__file__).parents[2]
SLOW_TO_IMPORT = ("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer")
LIMIT = 240.0
"""Seconds after which processes hang, as far as a test is concerned."""
WORDS = ("red", "ring", "left", "two", "moves", "blue")
LENGTHS = (0, 100, 1, 37, 0, 3, 80, 12)
POST = ["compressor.post_projector.*", "compressor.segment_marker"]
CAPTIONER = ["compressor.projectors.*", "compressor.captioner.*"]
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0}
STAGES = ("stage1_backbone", "stage1", "stage2", "stage3")
"""Recipes: the backbone's projectors with replies, the captioner's with captions, and the two stages after these."""


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


def recipe(name: str, data: Path, output: Path, longest: int = max(LENGTHS)) -> StageConfig:
    """A stage in all its phases, four samples a step, a line of the log for every step, a checkpoint for every second.

    Text is in the data of every phase; the phases that learn captions leave it out. `longest`: where captions are cut.
    """
    images, videos, text = ([str(data / f"{part}.jsonl")] for part in ("images", "train", "text"))
    tree = {
        "stage": name.partition("_")[0],
        "model": _model(name, longest).model_dump(mode="json"),
        "output": str(output),
    }
    tree |= {
        "phases": _phases(name, images, videos, text),
        "log_steps": 1,
        "save_steps": 2,
        "watchdog": 60,
        "verify_save": False,  # every process that starts would start one more; test_verify_save.py has its own
    }
    if name == "stage2":
        tree["watch"] = {"data": videos[0], "every": 9, "captions": 1, "density": 1}
    return check(StageConfig, tree, "test")


def _model(name: str, longest: int) -> ModelConfig:
    if name == "stage1_backbone":
        return tiny.config("pool", sides=[3, 0])
    base = {"name": "pool", "sides": [3, 2]} if name == "stage3" else None
    return tiny.config(segment_marker=True, base=base, max_soft_tokens=longest)


def _phases(name: str, images: list[str], videos: list[str], text: list[str]) -> list[dict]:
    """Beside what all recipes have: adapters in the captioner, words to start from, captions of its own."""
    if name == "stage1_backbone":
        return [_phase("projectors", "answer", 6, [*images, *text, *videos], ["backbone.projectors.image.*"])]
    if name == "stage1":
        return [_phase("projectors", "caption", 4, images + text, CAPTIONER[:1])]
    if name == "stage2":
        align = _phase("align", "align", None, videos + text, POST)
        return [
            _phase("base", "caption", 6, images + text, CAPTIONER[:1]) | {"captioner_lora": LORA},
            _phase("density", "caption", 10, videos + text, CAPTIONER),
            align | {"epochs": 1, "segment_text": "[{number}]"},
            _phase("post", "answer", 8, videos + text, POST) | {"captions": "captioner"},
        ]
    instruct = _phase("instruct", "answer", 24, videos + text, [*POST, "backbone.projectors.*"])
    return [instruct | {"lora": LORA, "questions_per_video": 3, "projector_learning_rate": 5e-4}]


def _phase(name: str, objective: str, steps: int | None, data: list[str], trainable: list[str]) -> dict:
    common = {"batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.05}
    return {**common, "name": name, "objective": objective, "steps": steps, "data": data, "trainable": trainable}


def changed(config: StageConfig, output: Path, zero: int | None = None, **phases: object) -> StageConfig:
    """The same in another place, with other settings of all phases that train, under ZeRO or not."""
    parts = [phase if phase.objective == "align" else phase.model_copy(update=phases) for phase in config.phases]
    file = _zero_file(output.parent, zero) if zero is not None else None
    return config.model_copy(update={"output": output, "phases": parts, "deepspeed": file})


def _zero_file(folder: Path, number: int) -> Path:
    """The settings that ship; but parameters so small as these would not be shared out under ZeRO-3."""
    settings = json.loads((ROOT / "configs" / "deepspeed" / f"zero{number}.json").read_text())
    if number == 3:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"zero{number}.json"
    file.write_text(json.dumps(settings))
    return file


def start(count: int, *configs: StageConfig) -> Sequence[BaseProcess]:
    """Start stages, one after the other, on so many processes, as a launcher would; a single one gets no group."""
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


def _rank(number: int, count: int, port: int, configs: Sequence[StageConfig]) -> None:
    gc.freeze()  # what was imported before the fork needs no looking through, which takes half a second each time
    if count > 1:
        here = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in here.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        for config in configs:
            stages.run_stage(config)
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


def run(count: int, *configs: StageConfig) -> None:
    """Stages from where they stand to their end, one after the other."""
    assert finish(start(count, *configs)) == [0] * count


def run_until(count: int, config: StageConfig, lines: int, end: Callable[[Sequence[BaseProcess]], None] = kill) -> int:
    """Start a stage and, when its log has so many lines, `end` it; returns how many lines it had then."""
    ranks = start(count, config)
    log, deadline = config.output / "log.jsonl", time.monotonic() + LIMIT
    try:
        while len(read_log(log)) < lines:
            assert all(process.is_alive() for process in ranks), [process.exitcode for process in ranks]
            assert time.monotonic() < deadline, f"no line {lines} within {LIMIT} s"
            time.sleep(0.005)
        end(ranks)
    finally:
        kill(ranks)
    return len(read_log(log))


def losses(config: StageConfig) -> dict[tuple[str, int], float]:
    """The loss of every step, by phase and step."""
    return {(line["phase"], line["step"]): line["loss"] for line in read_log(config.output / "log.jsonl")}


def assert_close(found: StageConfig, expected: StageConfig, tolerance: float) -> None:
    """Every loss; trained numbers to a tenth of what a step (of 1e-3) moves them; every caption that was written."""
    assert list(losses(found)) == list(losses(expected))
    assert losses(found) == pytest.approx(losses(expected), abs=tolerance)
    ours, theirs = (load_file(config.output / checkpoint.WEIGHTS) for config in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    seen, wanted = (jsonl.read(config.output / "captions.jsonl") for config in (found, expected))
    assert seen == wanted
