"""Small runs of tiny models for the tests of training: data, configs, and what trains them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from langdc.adapters import adapt
from langdc.config import LoraConfig, ModelConfig, RunConfig, check
from langdc.data.records import QuestionRecord, Record, write_records
from langdc.features import FeatureStore
from langdc.model import VideoModel
from langdc.sample.dataset import make_dataset
from langdc.train.arguments import training_arguments
from langdc.train.batches import TrainingData
from langdc.train.learner import Learner
from langdc.train.meter import Meter
from langdc.train.objectives import objectives
from langdc.train.trainable import unfreeze
from langdc.train.trainer import RunTrainer
from tests import tiny


@cache
def folder() -> Path:
    """Six videos (train), three held out (test), four images, and four questions without a video (text)."""
    made = Path(mkdtemp(prefix="train")) / "data"
    make_dataset(made, {"train": 6, "test": 3}, images=4, workers=1)
    asked = [QuestionRecord(kind="say", question=f"say {word}", answer=word) for word in ("red", "ring", "left", "two")]
    write_records(made / "text.jsonl", [Record(id=one.answer, questions=[one]) for one in asked])
    return made


def run_config(
    model: VideoModel | ModelConfig, *files: str, objective: str | dict = "answer", **changes: Any
) -> RunConfig:
    """A run of a model on files of `folder` (or elsewhere); keys of `train` may stand beside the others."""
    data = [name if "/" in name else str(folder() / f"{name}.jsonl") for name in files or ("train",)]
    train = {"data": data, "steps": 4, "batch_size": 2, "learning_rate": 1e-3, "allow_outside": True}
    own = RunConfig.model_fields.keys() - {"train"}
    train |= {key: changes.pop(key) for key in list(changes) if key not in own}
    built = model if isinstance(model, ModelConfig) else model.config
    tree = {"objective": objective, "model": built.model_dump(mode="json"), "log_steps": 1, "train": train}
    return check(RunConfig, {**tree, **changes}, "test")


def data_of(model: VideoModel, config: RunConfig, **features: Any) -> TrainingData:
    objective = objectives.build(config.objective.name, **config.objective.settings)
    store = FeatureStore.of(model.backbone, config.features, features.pop("dtype", "float32"))
    return TrainingData(model, objective, config, store)


def learner_of(data: TrainingData, weights: Mapping[str, float] | None = None) -> Learner:
    return Learner(data.model, data.objective, weights, data.config.seed)


def batch_of(data: TrainingData, *indices: int) -> dict[str, Any]:
    return data.collate([data[index] for index in indices or range(len(data))])


def trainer_of(data: TrainingData, output: Path, weights: Mapping[str, float] | None = None) -> RunTrainer:
    """A Trainer as the config says."""
    learner = learner_of(data, weights)
    return RunTrainer(learner, data, training_arguments(data.config, output, "small"), Meter(learner))


def train(
    data: TrainingData, output: Path, resume: bool = False, weights: Mapping[str, float] | None = None
) -> RunTrainer:
    """Train as the config says, without a run's directory; the Trainer afterwards."""
    trainer = trainer_of(data, output, weights)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: RunTrainer, name: str = "loss") -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


def with_adapters(model: VideoModel, *patterns: str) -> VideoModel:
    """Train what matches and adapters on the language model, which begin with an effect."""
    adapt(model.backbone.text_model, LoraConfig(rank=2, alpha=4, dropout=0.0))
    unfreeze(model, patterns, adapters=True)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def langdc(**settings: Any) -> VideoModel:
    """LangDC whose captions are not cut."""
    return tiny.model("langdc", max_soft_tokens=32, **settings)
