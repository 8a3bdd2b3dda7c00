"""What a phase learns: the captioner its target captions, or the language model its replies.

An objective is a module for the Trainer (batch in, loss out), a dataset, and a way to collate it. All frozen outputs
that it reads, encoder grids and caption states, are computed before the first step and kept.
Letters: B videos, T frames, S segments, n caption tokens, M length, D host width.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from langdc.compressors.langdc import LangDC
from langdc.config import PhaseConfig, StageConfig
from langdc.data.records import QuestionRecord, Record, check_media, read_records
from langdc.features import Clip, FeatureStore, TensorStore, module_hash
from langdc.flops import caption_flops, language_model_flops, linear_flops, project_flops
from langdc.hosts.batch import pad
from langdc.hosts.chat import IGNORED, conversation, share_video
from langdc.model import VideoModel
from langdc.types import FeatureGrid, Prompt, VideoFeatures


@dataclass(frozen=True)
class Sample:
    """A record with the clip its media is read from (None for text), and its index in the data set."""

    record: Record
    clip: Clip | None
    index: int


def read_samples(files: Sequence[Path], model: VideoModel) -> list[Sample]:
    """The records of all files; ValueError as `read_records`, and for records whose media file is missing."""
    samples: list[Sample] = []
    for file in files:
        for record in check_media(file, read_records(file))[0]:
            samples.append(Sample(record, clip_of(record, file, model), len(samples)))
    return samples


def check_segments(samples: Sequence[Sample], files: Sequence[Path]) -> None:
    """ValueError unless every record of the files has a caption for each segment that its media is cut into."""
    for sample in samples:
        wanted, found = sample.clip.segments if sample.clip is not None else 0, len(sample.record.segments)
        if wanted != found:
            raise ValueError(
                f"{', '.join(map(str, files))}: line {sample.record.line} (id {sample.record.id!r}) has {found} "
                f"segments; its media is cut into {wanted}. Write one for each, with an empty caption where there is "
                "nothing to say, or change the host's setting segments."
            )


def clip_of(record: Record, file: Path, model: VideoModel) -> Clip | None:
    """The frames a model samples of a record's media; None for text."""
    media = record.media_path(file.parent)
    if media is None:
        return None
    if record.image is not None:
        return Clip(media, 1, 1)
    host = model.host
    return Clip(media, host.segments, host.frames_per_segment, record.start, record.end, fps=record.fps)


class Objective(Dataset, ABC):
    """A data set with its loss. `module` is what the Trainer trains."""

    module: "LossModule"
    samples_per_item = 1

    def __init__(self, model: VideoModel, phase: PhaseConfig, config: StageConfig, features: FeatureStore) -> None:
        self.model = model
        self.phase = phase
        self.seed = config.seed
        self.features = features
        self.epoch = 0
        self.samples = [s for s in read_samples(phase.data, model) if self.wants(s.record)]
        if not self.samples:
            raise ValueError(
                f"Phase {phase.name!r}: no record of {', '.join(map(str, phase.data))} can be used for the "
                f"{phase.objective} objective" + (f" with kinds {phase.kinds}." if phase.kinds else ".")
            )
        self.check_samples()
        features.fill([sample.clip for sample in self.samples if sample.clip is not None])

    def check_samples(self) -> None:
        """ValueError for records that cannot be learned; asked before the encoders begin."""

    @abstractmethod
    def wants(self, record: Record) -> bool:
        """Whether a record has what this objective learns."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draws are given out."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def data_hash(self) -> str:
        """A hash of the records."""
        text = json.dumps([sample.record.model_dump() for sample in self.samples])
        return hashlib.sha256(text.encode()).hexdigest()

    def grids(self, samples: list[Sample]) -> dict[str, list[Tensor]]:
        """Raw grids per stream, one tensor [T,H,W,C] per video: what the Trainer moves to the device."""
        found = [self.features.get(sample.clip)[0] for sample in samples if sample.clip is not None]
        return {name: [grids[name].values for grids in found] for name in (found[0] if found else {})}

    @abstractmethod
    def collate(self, samples: list[Sample]) -> dict:
        """One batch; "labels" is one padded tensor, from which the Trainer counts targets."""

    def flops_per_batch(self, batch: dict) -> float:
        """Training FLOPs of the batch that was just learned, forward and backward; encoders ran before, not counted."""
        return self.module.flops


def as_features(model: VideoModel, grids: dict[str, list[Tensor]]) -> list[VideoFeatures]:
    """Raw grids of a batch as features of its videos, projected as far as the compressor needs."""
    count = len(next(iter(grids.values())))
    raw = [{name: FeatureGrid(values[number]) for name, values in grids.items()} for number in range(count)]
    seconds = [torch.arange(len(next(iter(grids.values()))[number])) for number in range(count)]
    return model.host.features(raw, seconds, model.compressor.needs)


def passes(module: nn.Module) -> int:
    """How often a module's products are computed in training: forward, backward to its inputs, and to its weights.

    The last falls away where its weights are frozen; the second is counted always, a little too much for a first layer.
    """
    return 3 if any(parameter.requires_grad for parameter in module.parameters()) else 2


def scaled(total: Tensor, targets: int, num_items_in_batch: Tensor | int | None) -> Tensor:
    """A summed loss as the mean over the targets of the whole (accumulated, all ranks') batch."""
    return total / (num_items_in_batch if num_items_in_batch is not None else max(targets, 1))


class LossModule(nn.Module):
    """What the Trainer trains: a batch in, {"loss"} out. `flops` are those of the last batch."""

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.model = model
        self.flops = 0.0


class CaptionModule(LossModule):
    """The captioner's cross-entropy on its target captions."""

    def forward(
        self,
        grids: dict[str, list[Tensor]],
        captions: list[list[Tensor]],
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        videos = as_features(self.model, grids)
        found = self.model.captioner.supervised(videos, captions)
        self.flops = self._flops(videos, captions)
        return {"loss": scaled(found.loss, found.targets, num_items_in_batch)}

    def _flops(self, videos: list[VideoFeatures], captions: list[list[Tensor]]) -> float:
        compressor = self.model.captioner
        forward = sum(
            caption_flops(compressor, video.raw, [len(caption) for caption in of_video], given=True)
            for video, of_video in zip(videos, captions, strict=True)
        )
        return forward * passes(compressor.captioner)


class CaptionObjective(Objective):
    """Learn the target caption of every segment, its end included."""

    def __init__(self, model: VideoModel, *args, **settings) -> None:
        model.captioner  # noqa: B018 - the error for models without one
        super().__init__(model, *args, **settings)
        self.module = CaptionModule(model)

    def wants(self, record: Record) -> bool:
        return bool(record.segments) and (record.video is not None or record.image is not None)

    def check_samples(self) -> None:
        check_segments(self.samples, self.phase.data)

    def collate(self, samples: list[Sample]) -> dict:
        encode = self.model.captioner.captioner.encode
        captions = [[encode(segment.caption) for segment in sample.record.segments] for sample in samples]
        end = torch.tensor([self.model.captioner.captioner.tokenizer.eos_token_id])
        targets = [torch.cat([caption, end]) for of_video in captions for caption in of_video]
        labels = pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        return {"grids": self.grids(samples), "captions": captions, "labels": labels}


class AnswerModule(LossModule):
    """The language model's cross-entropy on replies, given compressed videos."""

    def forward(
        self,
        prompts: list[Prompt],
        labels: Tensor,
        grids: dict[str, list[Tensor]] | None = None,
        states: list[list[Tensor]] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        videos = as_features(self.model, grids) if grids else []
        tokens = iter(self.model.tokens(videos, states))
        idle = 0.0 if videos or states else self._idle()
        spliced = self.model.host.splice(prompts, [[next(tokens) for _ in prompt.slots] for prompt in prompts])
        batch = pad(spliced)
        found = self.model.host.text_model(
            inputs_embeds=batch.embeds + idle,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
        )
        assert batch.labels is not None  # prompts to learn have labels
        learned = batch.labels[:, 1:] != IGNORED
        logits = self.model.host.lm_head(found.last_hidden_state[:, :-1][learned])
        loss = F.cross_entropy(logits.float(), batch.labels[:, 1:][learned], reduction="sum")
        self.flops = self._flops([len(item.embeds) for item in spliced], len(logits), videos, states)
        return {"loss": scaled(loss, len(logits), num_items_in_batch)}

    def _idle(self) -> Tensor:
        """Zero, by way of all that a batch with videos calls; added to the input, so that gradients go the same way.

        Ranks that share parameters or gradients must make the same calls in the same order, or they wait for ever.
        """
        host, compressor, device = self.model.host, self.model.compressor, self.model.device
        grids = {
            name: [torch.zeros(host.frames_per_segment, side, side, host.stream_widths[name], device=device)]
            for name, side in host.stream_sides.items()
        }
        said = isinstance(compressor, LangDC)
        states = [[torch.zeros(1, compressor.captioner.width, device=device)]] if said else None
        (tokens,) = self.model.tokens(as_features(self.model, grids), states)
        return tokens.values.sum() * 0

    def _flops(
        self,
        lengths: list[int],
        learned: int,
        videos: list[VideoFeatures],
        states: list[list[Tensor]] | None,
    ) -> float:
        host, compressor = self.model.host, self.model.compressor
        config = host.language_model.config
        total = sum(language_model_flops(config, length, predictions=0) for length in lengths)
        total += language_model_flops(config, 0, predictions=learned)
        total *= passes(host.text_model)
        if isinstance(compressor, LangDC) and states is not None:
            rows = sum(len(state) for of_video in states for state in of_video)
            total += linear_flops(compressor.post_projector, rows) * passes(compressor.post_projector)
        if "main" in compressor.needs:
            projected = sum(project_flops(host.projectors, video.raw) for video in videos)
            total += projected * passes(host.projectors)
        return total + sum(compressor.flops(video) for video in videos) * passes(compressor)


class AnswerObjective(Objective):
    """Learn the answers of several questions about each video, which share its tokens."""

    def __init__(self, model: VideoModel, phase: PhaseConfig, config: StageConfig, features: FeatureStore) -> None:
        super().__init__(model, phase, config, features)
        self.module = AnswerModule(model)
        self.states = caption_states(self) if isinstance(model.compressor, LangDC) else None

    def wants(self, record: Record) -> bool:
        return bool(self.questions_of(record))

    def check_samples(self) -> None:
        if self.phase.captions != "file" or not isinstance(self.model.compressor, LangDC):
            return
        samples = [sample for sample in self.samples if sample.clip is not None]
        if not all(sample.record.segments for sample in samples):
            raise ValueError(
                f"Phase {self.phase.name!r} takes captions from the file, and some records have no segments. Write "
                "them there, or set captions: captioner."
            )
        check_segments(samples, self.phase.data)

    def questions_of(self, record: Record) -> list[QuestionRecord]:
        """The record's questions of the phase's kinds."""
        return [q for q in record.questions if self.phase.kinds is None or q.kind in self.phase.kinds]

    def drawn(self, sample: Sample) -> list[QuestionRecord]:
        """At most `questions_per_video` questions, drawn by seed, epoch and record: the same whenever asked."""
        questions = self.questions_of(sample.record)
        rng = np.random.default_rng([self.seed, self.epoch, sample.index])
        order = rng.permutation(len(questions))[: self.phase.questions_per_video]
        return [questions[number] for number in order]

    def prompt(self, sample: Sample) -> Prompt:
        """The questions of a video as one prompt in which they share it; a text record asks only its first draw."""
        host, questions = self.model.host, self.drawn(sample)
        if sample.clip is None:
            return host.prompt(conversation(questions[0].question, questions[0].answer, video=False), learn=True)
        return share_video([host.prompt(conversation(q.question, q.answer), learn=True) for q in questions])

    def collate(self, samples: list[Sample]) -> dict:
        prompts = [self.prompt(sample) for sample in samples]
        known = [prompt.labels for prompt in prompts if prompt.labels is not None]
        labels = pad_sequence(known, batch_first=True, padding_value=IGNORED)
        batch = {"prompts": prompts, "labels": labels}
        with_video = [sample for sample in samples if sample.clip is not None]
        if self.states is not None:
            batch["states"] = [self.states[sample.index] for sample in with_video]
        if self.states is None or self.model.compressor.base is not None:
            batch["grids"] = self.grids(with_video)
        return batch


@torch.no_grad()
def caption_states(objective: Objective) -> dict[int, list[Tensor]]:
    """The frozen captioner's states of every sample by its index, computed once.

    They are of the records' captions or of those that the captioner writes, as the phase says.
    """
    model, phase, features = objective.model, objective.phase, objective.features
    captioner = model.captioner
    clips = {sample.index: sample.clip for sample in objective.samples if sample.clip is not None}
    samples = [sample for sample in objective.samples if sample.index in clips]
    identity = module_hash(captioner.captioner, captioner.projectors)
    settings = f"{identity} {captioner.captioner.layer} {captioner.captioner.soft_token} {phase.captions}"
    store = TensorStore(features.store.folder.with_name("states") if features.store.folder else None)

    def key(sample: Sample) -> str:
        said = [segment.caption for segment in sample.record.segments] if phase.captions == "file" else []
        return hashlib.sha256(f"{settings} {features.key(clips[sample.index])} {json.dumps(said)}".encode()).hexdigest()

    def compute(chunk: list[int]) -> list[dict[str, Tensor]]:
        chosen = [samples[number] for number in chunk]
        videos = as_features(model, objective.grids(chosen))
        if phase.captions == "file":
            said = [[captioner.captioner.encode(s.caption) for s in sample.record.segments] for sample in chosen]
            found = captioner.supervised(videos, said)
        else:
            found = captioner.caption(videos)
        return [
            {"states": torch.cat(of_video), "lengths": torch.tensor([len(part) for part in of_video])}
            for of_video in found.states
        ]

    keys = [key(sample) for sample in samples]
    store.fill(keys, compute, 16, "Reading caption states")
    found = {sample.index: store[name] for sample, name in zip(samples, keys, strict=True)}
    return {index: list(each["states"].split(each["lengths"].tolist())) for index, each in found.items()}


def build(model: VideoModel, phase: PhaseConfig, config: StageConfig, features: FeatureStore) -> Objective:
    """The objective of a phase that trains."""
    kind = {"caption": CaptionObjective, "answer": AnswerObjective}[phase.objective]
    return kind(model, phase, config, features)
