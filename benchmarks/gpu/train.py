"""Steps of stages 2b and 3 of LangDC-3B by the Trainer, from mp4 files: recipe settings, random weights, one process.

MFU is against the data sheet, as in the log of a run; the floor is the same operations at the measured ceiling. Where
peaks of the card are unknown, so is MFU. A start is all from the settings to the end of the first step; the imports of
the process stand beside it.
"""

import gc
import json
import logging
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import training
from benchmarks.gpu.measure import Place, Row, costs
from langdc import config as settings
from langdc import devices, distributed, jsonl
from langdc.config import RunConfig
from langdc.features import FeatureStore
from langdc.sample.scenes import COLOURS, SHAPES
from langdc.train.arguments import training_arguments
from langdc.train.batches import TrainingData
from langdc.train.learner import Learner
from langdc.train.meter import Meter
from langdc.train.objectives import objectives
from langdc.train.progress import JsonLog
from langdc.train.setup import RunModel
from langdc.train.trainer import RunTrainer
from langdc.video import write_video

STAGES = {"2b": ("stage2b", (8, 16, 2)), "3": ("stage3_choice", (8, 16, 4))}
"""The recipe of each stage, and its micro-batches, those that are likely the best first."""
CLIPS, CAPTION, QUESTIONS, WARM, STEPS = 4, 59, 8, 2, 4


def rows(place: Place) -> Iterator[Row]:
    """A line per micro-batch, then the biggest costs of a step, of one stage after the other."""
    distributed.start()
    logging.getLogger("langdc").setLevel(logging.WARNING)
    records = _records(place)
    for stage, (name, batches) in STAGES.items():
        yield from _stage(place, stage, _recipe(place, name, records), (1, 2) if place.tiny else batches)


def _records(place: Place) -> Path:
    """Clips of 10 seconds, and records with captions of 59 tokens and 8 questions that share them."""
    count, height, width = (16, 64, 64) if place.tiny else (300, 360, 640)
    words = list(islice(cycle([*COLOURS, *SHAPES]), CAPTION))
    generator = torch.Generator().manual_seed(0)
    lines, batch = [], 2 if place.tiny else max(max(batches) for _, batches in STAGES.values())
    for number in range(CLIPS):
        still = torch.randint(0, 256, (1, height // 8, width // 8, 3), generator=generator, dtype=torch.uint8)
        scene = still.repeat_interleave(8, 1).repeat_interleave(8, 2).expand(count, -1, -1, -1).clone()
        for frame in range(count):
            scene[frame, :, frame % width : frame % width + 40] ^= 255  # a bar that moves
        write_video(place.folder / f"{number}.mp4", scene.numpy(), 8 if place.tiny else 30)
    for number in range(batch * (WARM + STEPS)):
        segments = [{"caption": " ".join(words)}] * 4
        questions = [{"kind": "any", "question": f"what is {word} ?", "answer": word} for word in words[:QUESTIONS]]
        video = f"{number % CLIPS}.mp4"
        lines.append({"id": str(number), "video": video, "segments": segments, "questions": questions})
    file = place.folder / "records.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def _recipe(place: Place, name: str, records: Path) -> RunConfig:
    """A run of configs/langdc_3b with random parts, without DeepSpeed, each step encoding its own videos."""
    tree, model = settings.read_tree(f"langdc_3b/{name}"), settings.read_tree("langdc_3b/model")["model"]
    base = tree["model"]["compressor"]["base"]
    if place.tiny:
        model = training.recipe(dual=base is not None).model_dump(mode="json")
        model["backbone"]["image_encoder"]["source"]["config"]["image_size"] = 14 * 6
        model["backbone"]["video_encoder"]["source"]["config"]["image_size"] = 14 * 4
        model["compressor"]["pool"], base = [3, 2], base and {**base, "sides": [2, 1]}
    model["compressor"]["base"] = base
    run = {"model": model, "start": None, "deepspeed": None, "log_steps": 1, "save_steps": 10**6, "feature_memory": 0}
    return settings.check(RunConfig, {**tree, **run, "train": {**tree["train"], "data": [str(records)]}}, name)


def _stage(place: Place, stage: str, config: RunConfig, batches: tuple[int, ...]) -> Iterator[Row]:
    before = time.perf_counter()
    objective = objectives.build(config.objective.name, **config.objective.settings)
    torch.manual_seed(config.seed)
    model = RunModel.of(config, objective, torch.device(place.device)).model
    for number, batch in enumerate(batches):
        steps = {"kinds": None, "steps": WARM + STEPS, "epochs": None, "batch_size": batch, "gradient_accumulation": 1}
        sized = config.model_copy(update={"train": config.train.model_copy(update=steps)})
        store = FeatureStore.of(model.backbone, None, config.features_dtype)
        data = TrainingData(model, objective, sized, store)
        try:
            prepared = time.perf_counter() - before
            row, first = _steps(place, data, place.folder / f"{stage}-{number}")
        except torch.OutOfMemoryError:
            yield {"table": "steps", "stage": stage, "micro-batch": batch, "samples/s": "out of memory"}
        else:
            start = {"start s": prepared + first, "imports s": place.import_seconds} if number == 0 else {}
            yield {"table": "steps", "stage": stage, "micro-batch": batch, **row, **start}
            if number == 0:
                yield from _profile(place, stage, data)
        gc.collect()
        if place.device != "cpu":
            torch.cuda.empty_cache()
    del model


def _steps(place: Place, data: TrainingData, directory: Path) -> tuple[Row, float]:
    """Figures of the steps after the first ones, and the seconds to the end of the first step."""
    config = data.config
    learner = Learner(data.model, data.objective, config.loss_weights, config.seed).train()
    directory.mkdir()
    log = JsonLog(directory / "log.jsonl", lambda steps: steps * config.train.batch_size)
    meter = Meter(learner, config.precision, config.peak_flops)
    trainer = RunTrainer(learner, data, training_arguments(config, directory, "gpu"), meter, [log])
    devices.reset_peak(torch.device(place.device))
    before = time.perf_counter()
    trainer.train()
    whole = time.perf_counter() - before
    lines = jsonl.read(log.path)
    taken = [later["seconds"] - line["seconds"] for line, later in zip(lines[WARM - 1 :], lines[WARM:], strict=False)]
    step, flops = median(taken), (lines[-1]["flops"] - lines[WARM - 1]["flops"]) / STEPS
    floor = place.floor(flops)
    figures: dict[str, Any] = {
        "samples/s": config.train.batch_size / step, "step s": step, "floor s": floor, "step / floor": step / floor,
        "MFU %": 100 * max(line["mfu"] for line in lines[WARM:]) if "mfu" in lines[-1] else None,
        "waiting for data %": 100 * median(line["data_wait"] for line in lines[WARM:]), "peak GiB": place.peak_gib,
    }  # fmt: skip
    return figures, whole - lines[-1]["seconds"] + lines[0]["seconds"]


def _profile(place: Place, stage: str, data: TrainingData) -> Iterator[Row]:
    learner = Learner(data.model, data.objective, data.config.loss_weights, data.config.seed).train()
    batch = data.collate(data.samples[: data.config.train.batch_size])

    def step() -> None:
        with torch.autocast(place.device, torch.bfloat16, enabled=data.config.precision == "bfloat16"):
            loss = learner(**batch)["loss"]
        loss.backward()
        learner.zero_grad()

    yield from costs(f"stage {stage}, forward and backward", step, place.device)
