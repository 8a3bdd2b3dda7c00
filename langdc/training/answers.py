"""The language model learns to reply: cross-entropy on answers, given compressed videos.

Letters: B videos, S segments, n caption tokens, M length, D backbone width, Z captioner width.
"""

import json
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from langdc.backbones.batch import pad
from langdc.backbones.chat import IGNORED, conversation, share_video
from langdc.compressors.langdc import LangDC
from langdc.config import PhaseConfig, StageConfig
from langdc.data.records import QuestionRecord, Record
from langdc.distributed import world_size
from langdc.features import FeatureStore
from langdc.flops import caption_flops, language_model_flops, linear_flops, project_flops
from langdc.hashing import module_hash, text_hash
from langdc.model import VideoModel
from langdc.store import TensorStore
from langdc.training.captions import encoded
from langdc.training.counts import answer_counts
from langdc.training.objectives import Looks, LossModule, Objective, as_features, passes, scaled
from langdc.training.samples import Sample, check_segments
from langdc.types import Frames, Prompt, VideoFeatures

CHUNK = 16  # videos whose captions are read at once


class AnswerModule(LossModule):
    """The language model's cross-entropy on replies, given compressed videos.

    `least`: so many videos are compressed in every batch, of which empty ones are learned nothing from. With `looks`
    the captioner, too, runs in the step, unless the batch has its states.
    """

    def __init__(self, model: VideoModel, least: int = 1, looks: Looks | None = None) -> None:
        super().__init__(model, looks)
        self.least = least

    def train(self, mode: bool = True) -> "AnswerModule":
        """As any module; but a captioner that reads in the step does as in use: its layers must keep their cache."""
        super().train(mode)
        if self.reads:
            self.model.captioner.captioner.eval()
        return self

    @property
    def reads(self) -> bool:
        """Whether the frozen captioner's states are read in the step."""
        return self.looks is not None and isinstance(self.model.compressor, LangDC)

    def forward(
        self,
        prompts: list[Prompt],
        labels: Tensor,
        grids: dict[str, list[Tensor]] | None = None,
        states: list[list[Tensor]] | None = None,
        frames: list[Frames] | None = None,
        captions: list[list[Tensor]] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        videos, filled, given = self._filled(self.grids(grids, frames), states)
        if self.reads:
            filled = self._read(videos, captions)
            states = filled[:given]
        found_tokens = self.model.tokens(videos, filled)
        # zero, added to the input, so that gradients go the same way in every rank
        idle = sum((each.values.sum() for each in found_tokens[given:]), torch.zeros((), device=self.model.device)) * 0
        videos, tokens = videos[:given], iter(found_tokens[:given])
        spliced = self.model.backbone.splice(prompts, [[next(tokens) for _ in prompt.slots] for prompt in prompts])
        batch = pad(spliced)
        found = self.model.backbone.text_model(
            inputs_embeds=batch.embeds + idle,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
        )
        assert batch.labels is not None  # prompts to learn have labels
        learned = batch.labels[:, 1:] != IGNORED
        logits = self.model.backbone.lm_head(found.last_hidden_state[:, :-1][learned])
        loss = F.cross_entropy(logits.float(), batch.labels[:, 1:][learned], reduction="sum")
        self.flops = self._flops([len(item.embeds) for item in spliced], len(logits), videos, states)
        self.flops += self._reading_flops(videos, states or [], captions is not None)
        self.counts = answer_counts(spliced, states)
        self.parts = {"answer": (loss.detach(), len(logits))}
        return {"loss": scaled(loss, len(logits), num_items_in_batch)}

    def _filled(
        self, grids: dict[str, list[Tensor]], states: list[list[Tensor]] | None
    ) -> tuple[list[VideoFeatures], list[list[Tensor]] | None, int]:
        """The batch's videos and states, with empty ones after them up to `least`, and how many were given.

        Ranks that share parameters or gradients must make the same calls in the same order, or they wait for ever; a
        compressor may make some for every video.
        """
        backbone, compressor, device = self.model.backbone, self.model.compressor, self.model.device
        given = len(states) if states is not None else len(next(iter(grids.values()), []))
        missing = max(self.least - given, 0)
        if isinstance(compressor, LangDC) and not self.reads and (states is not None or not given):
            kind = next((part.dtype for of_video in states or [] for part in of_video), None)
            empty = torch.zeros(1, compressor.captioner.width, device=device, dtype=kind)
            states = [*(states or []), *[[empty]] * missing]
            if compressor.base is None:
                return [], states, given
        filled = {}
        for name, side in backbone.stream_sides.items():
            known = grids.get(name, [])
            kind = known[0].dtype if known else None
            shape = (backbone.frames_per_segment, side, side, backbone.stream_widths[name])
            filled[name] = [*known, *[torch.zeros(shape, device=device, dtype=kind)] * missing]
        return as_features(self.model, filled), states, given

    @torch.no_grad()
    def _read(self, videos: list[VideoFeatures], captions: list[list[Tensor]] | None) -> list[list[Tensor]]:
        """The captioner's states of all videos, of given captions or those that it writes; empty videos have none."""
        captioner = self.model.captioner
        if captions is None:
            return captioner.caption(videos, synced=world_size() > 1).states
        empty = torch.empty(0, dtype=torch.long)
        others = [[empty] * captioner.segments(video) for video in videos[len(captions) :]]
        return captioner.read(videos, [*captions, *others])

    def _reading_flops(self, videos: list[VideoFeatures], states: list[list[Tensor]], given: bool) -> float:
        """What the frozen encoders and captioner took, if they ran in this step."""
        if not self.reads:
            return self.looking_flops(videos)
        written = [[len(state) for state in of_video] for of_video in states]
        captioner = self.model.captioner
        how: Literal["read"] | None = "read" if given else None
        reading = (caption_flops(captioner, v.encoder, of, given=how) for v, of in zip(videos, written, strict=True))
        return self.looking_flops(videos) + sum(reading)

    def _flops(
        self,
        lengths: list[int],
        learned: int,
        videos: list[VideoFeatures],
        states: list[list[Tensor]] | None,
    ) -> float:
        backbone, compressor = self.model.backbone, self.model.compressor
        config = backbone.language_model.config
        total = sum(language_model_flops(config, length, predictions=0) for length in lengths)
        total += language_model_flops(config, 0, predictions=learned)
        total *= passes(backbone.text_model)
        if isinstance(compressor, LangDC) and states is not None:
            rows = sum(len(state) for of_video in states for state in of_video)
            total += linear_flops(compressor.post_projector, rows) * passes(compressor.post_projector)
        if "projected" in compressor.needs:
            projected = sum(project_flops(backbone.projectors, video.encoder) for video in videos)
            total += projected * passes(backbone.projectors)
        return total + sum(compressor.flops(video) for video in videos) * passes(compressor)


class AnswerObjective(Objective):
    """Learn the answers of several questions about each video, which share its tokens."""

    def __init__(self, model: VideoModel, phase: PhaseConfig, config: StageConfig, features: FeatureStore) -> None:
        super().__init__(model, phase, config, features)
        self.module = AnswerModule(model, phase.batch_size if world_size() > 1 else 1, self.looks)
        reads = isinstance(model.compressor, LangDC) and not self.online
        self.states = CaptionStates(self) if reads else None

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
        backbone, questions = self.model.backbone, self.drawn(sample)
        if sample.clip is None:
            return backbone.prompt(conversation(questions[0].question, questions[0].answer, video=False), learn=True)
        return share_video([backbone.prompt(conversation(q.question, q.answer), learn=True) for q in questions])

    def collate(self, samples: list[Sample]) -> dict:
        prompts = [self.prompt(sample) for sample in samples]
        known = [prompt.labels for prompt in prompts if prompt.labels is not None]
        labels = pad_sequence(known, batch_first=True, padding_value=IGNORED)
        batch = {"prompts": prompts, "labels": labels}
        with_video = [sample for sample in samples if sample.clip is not None]
        if self.states is not None:
            batch["states"] = [self.states[sample.index] for sample in with_video]
        if self.states is None or self.model.compressor.base is not None:
            batch |= self.seen(with_video)
        if self.module.reads and self.phase.captions == "file":
            batch["captions"] = encoded(self.model, with_video)
        return batch


class CaptionStates:
    """The frozen captioner's states of every sample, by its index: one tensor [n,Z] per segment.

    Computed once, before the first step, and read from the store when asked. They are of the records' captions or of
    those that the captioner writes, as the phase says.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.compressor = objective.model.captioner
        folder = objective.features.store.folder
        self.store = TensorStore(folder.with_name("states") if folder else None)
        self.samples = [sample for sample in objective.samples if sample.clip is not None]
        settings = self._settings()
        keys = [self._key(sample, settings) for sample in self.samples]
        self.keys = {sample.index: key for sample, key in zip(self.samples, keys, strict=True)}
        training = self.compressor.training
        self.compressor.eval()  # layers that recompute their activations in training keep no cache
        self.store.fill(keys, self._computed, "Reading caption states")
        self.compressor.train(training)

    def __getitem__(self, index: int) -> list[Tensor]:
        found = self.store[self.keys[index]]
        return list(found["states"].split(found["lengths"].tolist()))

    def _settings(self) -> str:
        captioner = self.compressor.captioner
        identity = module_hash(captioner, self.compressor.projectors)
        return f"{identity} {captioner.layer} {captioner.soft_token} {self.objective.phase.captions}"

    def _key(self, sample: Sample, settings: str) -> str:
        assert sample.clip is not None  # as chosen
        from_file = self.objective.phase.captions == "file"
        said = [segment.caption for segment in sample.record.segments] if from_file else []
        text = f"{settings} {self.objective.features.key(sample.clip)} {json.dumps(said)}"
        return text_hash(text)

    def _computed(self, numbers: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for first in range(0, len(numbers), CHUNK):
            chunk = numbers[first : first + CHUNK]
            yield from zip(chunk, self._of([self.samples[number] for number in chunk]), strict=True)

    @torch.no_grad()
    def _of(self, chosen: list[Sample]) -> list[dict[str, Tensor]]:
        model = self.objective.model
        videos = as_features(model, self.objective.grids(chosen))
        if self.objective.phase.captions == "file":
            states = self.compressor.read(videos, encoded(model, chosen))
        else:
            states = self.compressor.caption(videos).states
        return [
            {"states": torch.cat(of_video).cpu(), "lengths": torch.tensor([len(part) for part in of_video])}
            for of_video in states
        ]
