"""Validation: the loss, and the accuracy of replies, on records that a run does not learn from.

What is measured is the model as it would be saved, without dropout, with the budget of the last step. Each question
counts once, and so does each loss that the compressor has of a video.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from langdc import distributed
from langdc.backbones.chat import conversation
from langdc.config import RunConfig
from langdc.data.records import QuestionRecord
from langdc.evaluate.choices import choice
from langdc.evaluate.metrics import metrics
from langdc.evaluate.statistics import mean
from langdc.features import read_spec
from langdc.interfaces import Objective
from langdc.log import get_logger
from langdc.model import VideoModel
from langdc.pipeline import OpenVideo, VideoLM
from langdc.train.batches import GB, TrainingData
from langdc.train.finite import explain
from langdc.train.quarantine import check_list
from langdc.train.samples import Sample, read_samples
from langdc.train.trainer import BEST_FILE, EvenBatchSampler, RunTrainer
from langdc.types import FrameSpec

logger = get_logger(__name__)


def split(model: VideoModel, objective: Objective, config: RunConfig) -> tuple[list[Sample], list[Sample]]:
    """The samples to learn from, and those of `train.validation`; all that show one video are on one side.

    ValueError for a video on both sides, a share that leaves nothing to learn, and no answer to score replies by.
    Streamed samples are not read here: none.
    """
    settings, train = config.train.validation, config.train
    check_list(train)
    if train.streaming and settings is not None and settings.share is not None:
        raise ValueError("train.validation.share needs all records; with train.streaming give train.validation.data.")
    samples = [] if train.streaming else read_samples(model, objective, train, config.seed)
    if settings is None:
        return samples, []
    learned, held = _by_share(samples, settings.share, config.seed) if settings.share is not None else (samples, [])
    if settings.data:
        held = read_samples(model, objective, train.model_copy(update={"data": settings.data}), config.seed)
        known = {path: sample for sample in samples for path in _videos(sample)}
        for sample in held:
            if both := _videos(sample) & known.keys():
                raise ValueError(
                    f"train.validation.data: {sample.where} shows {min(both)}, which is also in the training data "
                    f"({known[min(both)].where}). Take it out of one of them, or give a share in place of files."
                )
    if settings.accuracy and not any(map(_scored, held)):
        raise ValueError(
            "train.validation.accuracy: no validation record has a question with an answer. Give such records, "
            "or leave it out."
        )
    return learned, held


def _by_share(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to learn from and held-out ones: at least this share of all, by whole videos drawn by the seed."""
    groups, out = _by_video(samples), set()
    for number in np.random.default_rng(seed).permutation(len(groups)):
        if len(out) >= share * len(samples):
            break
        out |= {sample.index for sample in groups[number]}
    if len(out) == len(samples):
        raise ValueError(
            f"train.validation.share: {share:g} of {len(samples)} records takes all of their {len(groups)} "
            "videos. Give a smaller share, or files in train.validation.data."
        )
    sides = ([sample for sample in samples if (sample.index in out) == held] for held in (False, True))
    learned, held = ([replace(sample, index=index) for index, sample in enumerate(side)] for side in sides)
    return learned, held


def _videos(sample: Sample) -> set[Path]:
    """The media that a sample shows."""
    return {spec.path.resolve() for spec in sample.specs}


def _by_video(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples that show the same video, directly or by way of others, together; one of text alone."""
    above: dict[Path, Path] = {}

    def top(path: Path) -> Path:
        while above.setdefault(path, path) != path:
            path = above[path]
        return path

    groups: dict[Path | str, list[Sample]] = {}
    shown = [sorted(_videos(sample)) for sample in samples]
    for first, *others in filter(None, shown):
        above |= {top(other): top(first) for other in others}
    for sample, videos in zip(samples, shown, strict=True):
        groups.setdefault(top(videos[0]) if videos else sample.where, []).append(sample)
    return list(groups.values())


def validation_data(data: TrainingData, samples: Sequence[Sample], directory: Path) -> TrainingData:
    """Validation samples as a data set, encoded and stored as the training's `data`, each with one question.

    The first question of every record comes before all other questions.
    """
    config, objective = data.config, data.objective
    counts = [max(1, len(sample.record.questions) if objective.reads else 0) for sample in samples]
    pairs = list(zip(samples, counts, strict=True))
    asked = [(sample, number) for number in range(max(counts)) for sample, count in pairs if number < count]
    single = [_asking(sample, number, index) for index, (sample, number) in enumerate(asked)]
    plain = {"data": config.train.data[:1], "streaming": False, "group_by_length": False, "packing": False}
    train = config.train.model_copy(update={"questions_per_video": 1, **plain})
    room = max(0.0, config.feature_memory - data.features.store.held_bytes / GB)
    own = config.model_copy(update={"train": train, "feature_memory": room})
    found = TrainingData(data.model, objective, own, data.features, single)
    objective.prepare(data.model, found, directory / "validation")
    return found


def _asking(sample: Sample, number: int, index: int) -> Sample:
    """A sample with one of its questions."""
    questions = sample.record.questions[number : number + 1]
    return replace(sample, index=index, entry=0, record=sample.record.model_copy(update={"questions": questions}))


def _scored(sample: Sample) -> bool:
    return any(question.answered for question in sample.record.questions)


class Validation(TrainerCallback):
    """Measures every `every` steps and at the end, keeps the tensors with the lowest loss, and stops early.

    `stopped`: whether it stopped the run early. The lowest loss and its step are in the Trainer's state, so that a
    resumed run knows them. `data` as of `validation_data`.
    """

    def __init__(self, trainer: RunTrainer, data: TrainingData) -> None:
        assert data.config.train.validation is not None  # as chosen
        self.trainer, self.data, self.settings, self.stopped = trainer, data, data.config.train.validation, False
        self._broken: list[int] = []  # a batch that was not finite, or the last one

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure, if it is time."""
        step, every, last = state.global_step, self.settings.every, state.global_step >= state.max_steps
        if step % every and not last:
            return
        self.trainer.finite.check()
        with self.trainer.meter.pause(), self.trainer.averaged():
            figures = self._figures(step)
            if state.best_metric is None or figures["eval_loss"] < state.best_metric:
                state.best_metric, state.best_global_step = figures["eval_loss"], step
                self.trainer.save_trained(Path(str(args.output_dir)) / BEST_FILE)
        self.trainer.meter.held_out |= figures
        right = [100 * value for name, value in figures.items() if name.startswith("eval_accuracy")]
        said = "; accuracy {:.1f} % ({:.1f} to {:.1f})".format(*right) if right else ""
        logger.info("Step %d: validation loss %.4f%s", step, figures["eval_loss"], said)
        control.should_log = True
        behind = step // every - (state.best_global_step or 0) // every
        if self.settings.patience is not None and behind >= self.settings.patience and not last:
            logger.info("No lower validation loss in %d measurements: the run ends after step %d.", behind, step)
            self.stopped = control.should_training_stop = True
            control.should_save = False  # the run's own checkpoint follows; from this one it would train on

    @torch.no_grad()
    def _figures(self, step: int) -> dict[str, float]:
        """{"eval_loss", "eval_loss_NAME", "eval_accuracy", "eval_accuracy_low", "eval_accuracy_high"}."""
        learner = self.trainer.learner
        learner.eval()
        learner.begin_step(1, 1)
        with self.trainer.accelerator.autocast():
            found = self._losses()
            names = [name for name in learner.names if name in found]
            loss = sum(learner.weights.get(name, 1.0) * found[name] for name in names)
            if not names:
                raise ValueError("There are no validation targets. Look at the records of train.validation.")
            if not math.isfinite(loss):
                why = explain(self.trainer, [self._batch(self._broken)])
                raise ValueError(f"The validation loss is {loss} at step {step}. {why}")
            figures = {"eval_loss": loss, **({f"eval_loss_{name}": found[name] for name in names} if names[1:] else {})}
            figures |= self._accuracy() if self.settings.accuracy else {}
        learner.train()
        return figures

    def _batch(self, indices: Sequence[int]) -> dict[str, Any]:
        return self.data.collate([self.data[index] for index in indices])

    def _losses(self) -> dict[str, float]:
        """Each loss by name: the sum over all targets of all processes, over their count."""
        learner, size, found, last = self.trainer.learner, self.data.config.train.batch_size, [], [0]
        first = len({sample.where for sample in self.data.samples})
        parts = [(0, first, learner.names), (first, len(self.data), learner.objective.names)]
        for start, end, names in parts:
            for numbers in EvenBatchSampler(end - start, size, 0):
                last = [n + start if n >= 0 else n - start for n in numbers]
                learner(**self.trainer._prepare_inputs(self._batch(last)))
                found += [(name, *learner.parts[name], last) for name in names if name in learner.parts]
                self._alive()
        sums = torch.stack([total.float() for _, total, *_ in found]).tolist() if found else []
        self._broken = next((one[3] for one, total in zip(found, sums, strict=True) if not math.isfinite(total)), last)
        own = [(name, total, count) for (name, _, count, _), total in zip(found, sums, strict=True)]
        everyone = [each for part in distributed.gather(own) for each in part]
        counts = Counter[str]()
        for name, _, count in everyone:
            counts[name] += count
        sums = {name: math.fsum(total for each, total, _ in everyone if each == name) for name in counts}
        return {name: sums[name] / count for name, count in counts.items() if count}

    def _accuracy(self) -> dict[str, float]:
        """How many replies are right, with an interval over videos; processes share the questions."""
        size, own = self.data.config.train.batch_size, []
        samples = sorted(filter(_scored, self.data.samples), key=lambda sample: sample.where)  # a video's together
        groups = _by_video(samples)
        video = {each.where: str(min(_videos(group[0]), default=each.where)) for group in groups for each in group}
        chunks = [samples[first : first + size] for first in range(0, len(samples), size)]
        lm = VideoLM(self.data.model)
        for chunk in chunks[distributed.rank() :: distributed.world_size()]:
            opened = {spec: self._opened(lm, spec) for sample in chunk for spec in sample.specs}
            asked = [(s.record.questions[0].prompt(), [opened[spec] for spec in s.specs]) for s in chunk]
            single = [(videos[0], text) for text, videos in asked if len(videos) == 1]
            replies = iter(lm.answer(single) if single else [])
            for sample, (text, videos) in zip(chunk, asked, strict=True):
                several = len(videos) != 1
                answer = lm.converse(conversation(text, videos=len(videos)), videos) if several else next(replies)
                own.append((video[sample.where], _score(sample.record.questions[0], answer.text)))
            self._alive()
        everyone = sorted(each for part in distributed.gather(own) for each in part)
        found = mean([score for _, score in everyone], [name for name, _ in everyone])
        return {"eval_accuracy": found.value, "eval_accuracy_low": found.low, "eval_accuracy_high": found.high}

    def _opened(self, lm: VideoLM, spec: FrameSpec) -> OpenVideo:
        """A video, encoded as the training's are."""
        if self.data.online:
            video = lm.open(spec.path, decoded=(read_spec(spec), 0.0))
        else:
            video = OpenVideo(lm, None, *self.data.features.kept(spec))
        video.encoder = {name: lm.model._placed(grid) for name, grid in video.encoder.items()}
        return video

    def _alive(self) -> None:
        """Tell the watchdog that something was done."""
        trainer = self.trainer
        trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)


def _score(question: QuestionRecord, reply: str) -> float:
    """1 for the right letter or, where there are no options, the answer's words."""
    if question.options:
        return float(choice(reply, question.options) == question.answer)
    exact = metrics.build("exact")
    found = exact.parse(question.answer, reply)
    return 0.0 if found is None else exact.score(question.answer, found)
