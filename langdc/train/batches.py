"""From records to batches: the frames of each video, prompts that know their videos, and targets of the compressor.

What frozen encoders put out is computed before the first step and kept, in memory or on a disk; where it is too much
for the memory, batches hold frames, which are encoded in the step ("online"). Letters: T frames, H W patch grid.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from langdc.backbones.chat import IGNORED, conversation, question_of, share_video, turns
from langdc.config import DataConfig, RunConfig
from langdc.data.records import QuestionRecord
from langdc.features import TYPES, FeatureStore, read_spec
from langdc.hashing import seen_hash, text_hash
from langdc.interfaces import Objective
from langdc.language_models import ids_of
from langdc.log import get_logger
from langdc.model import VideoModel
from langdc.train.mixing import epoch_counts, epoch_samples
from langdc.train.samples import Sample, StreamedSamples, read_samples
from langdc.train.states import FrozenStates
from langdc.types import Context, FeatureGrid, Frames, FrameSpec, Grids, Prompt, VideoBatch, VideoFeatures

logger = get_logger(__name__)

GB = 10**9
_Encoded = tuple[Grids, Tensor]  # grids by stream, and times [T]
SOME = 100
"""Streamed samples that are read before the first step."""
MAX_THREADS = 8  # that decode; more of them wait for the same memory


class TrainingData(Dataset):
    """The records of a run as samples, and batches of them: {"batch": `VideoBatch`, "counts": targets by loss}.

    `samples`: in place of those of `train.data`, each with its index. `online`: nothing of the encoders is kept. A
    negative index -i-1 is sample i as padding. ValueError for records that cannot be learned from, before anything is
    encoded.
    """

    def __init__(
        self,
        model: VideoModel,
        objective: Objective,
        config: RunConfig,
        features: FeatureStore,
        samples: Sequence[Sample] | None = None,
    ) -> None:
        self.model, self.objective, self.config, self.features = model, objective, config, features
        self.epoch = 0  # whose questions are drawn
        self._outlines: dict[FrameSpec, _Encoded] = {}
        self.replies: Mapping[tuple[str, str], str] = {}
        """Replies to learn in place of the records', by record id and the text asked."""
        if config.train.questions_per_video > 1 and "question" in model.compressor.needs:
            raise ValueError(
                f"{type(model.compressor).__name__} compresses a video for one question, and "
                f"train.questions_per_video is {config.train.questions_per_video}. Set it to 1."
            )
        streaming = config.train.streaming and samples is None
        if streaming and (config.features or objective.own_replies):
            raise ValueError(
                "train.streaming reads a record when a step needs it, so that nothing can be done with all of them "
                "before: leave out features, and take replies from the records."
            )
        source = model, objective, config.train, config.seed
        found = samples or (StreamedSamples(*source) if streaming else read_samples(*source))
        self.samples: Sequence[Sample] = found
        self.sizes = _sizes(self.samples, len(config.train.data))
        self.counts = epoch_counts(config.train.sets, self.sizes)
        """How many samples an epoch has of each entry of `train.data`."""
        seen = () if streaming else self.samples
        self.specs = list(dict.fromkeys(spec for sample in seen for spec in sample.specs))
        trained = any(parameter.requires_grad for parameter in model.backbone.encoders.parameters())
        self.online = streaming or trained or (features.store.folder is None and self._too_much())
        if not self.online:
            features.fill(self.specs)
        self.states = None if self.online else self._frozen_states()
        text = not self.online and any(not sample.specs for sample in self.samples)
        self._blank = self._encoded_blank() if text else None
        self._rates = self._tokens_read() if config.train.group_by_length and objective.reads else {}

    def targets(self, sample: Sample) -> Mapping[str, Any]:
        """What the compressor learns from a sample, by name."""
        return sample.targets(self.model.compressor) if self.config.train.targets == "records" else {}

    def _frozen_states(self) -> FrozenStates | None:
        """What the compressor's frozen part makes of the videos; None if it has none that could be stored."""
        compressor = self.model.compressor
        wanted = self.objective.wanted(compressor, self.config.loss_weights)
        context = Context(training=True, targets=dict.fromkeys(self.target_names, ()), wanted=wanted)
        identity = compressor.frozen_identity(context)
        if identity is None or "question" in compressor.needs:  # another one each time a video is asked about
            return None
        return FrozenStates(self.model, self.features, self.samples, self.targets, identity)

    def _too_much(self) -> bool:
        """Whether the encoders' outputs are more GB than may be kept, judged by the longest video and an image."""
        frames = {spec: spec.segments * spec.frames_per_segment for spec in self.specs}
        values = 0.0
        for specs in ([s for s in self.specs if frames[s] == 1], [s for s in self.specs if frames[s] > 1]):
            if specs:
                longest = max(specs, key=frames.__getitem__)
                found = sum(grid.values.numel() for grid in self._encode(read_spec(longest)).values())
                values += found / frames[longest] * sum(frames[spec] for spec in specs)
        size = values * TYPES[self.config.features_dtype].itemsize / GB
        if size > self.config.feature_memory:
            logger.info(
                "The encoders' outputs would take about %.3g GB, more than feature_memory = %g: each step decodes and "
                "encodes its own videos. To keep them on a disk: features=DIR.",
                size,
                self.config.feature_memory,
            )
        return size > self.config.feature_memory

    # ---- as a data set

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index] if index >= 0 else replace(self.samples[-index - 1], padding=True)

    def drawn(self, sample: Sample) -> list[QuestionRecord]:
        """At most `questions_per_video` questions, drawn by seed, epoch and record; one of a record without media."""
        questions = sample.record.questions
        rng = np.random.default_rng([self.config.seed, self.epoch, sample.index])
        count = self.config.train.questions_per_video if sample.specs else 1
        return [questions[number] for number in rng.permutation(len(questions))[:count]]

    # ---- what an epoch has

    @property
    def epoch_length(self) -> int:
        """How many samples an epoch has."""
        return sum(self.counts)

    def epoch_samples(self, epoch: int) -> Tensor:
        """Their indices."""
        return epoch_samples(self.sizes, self.counts, self.config.seed, epoch)

    def length(self, index: int) -> float:
        """About how many tokens are read of a sample: its texts', its captions', and as many of a frame as of the first
        video's (an image as the first image).
        """
        sample, ids = self[index], partial(ids_of, self.model.backbone.tokenizer)
        said = [turn.content for turn in sample.record.messages]
        said += [text for question in self.drawn(sample) for text in (question.prompt(), question.answer)]
        texts = sum(len(ids(text)) for text in said) if self.objective.reads else 0
        captions = sum(len(ids) for ids in self.targets(sample).get("captions", ()))
        frames = [_size(spec) for spec in sample.specs]
        return texts + captions + sum(size * self._rates.get(image, 0.0) for size, image in frames)

    @torch.no_grad()
    def _tokens_read(self) -> dict[bool, float]:
        """Tokens that the language model reads of a unit of `_size`, of videos and of images (True)."""
        found: dict[bool, float] = {}
        compressor, training = self.model.compressor, self.model.compressor.training
        compressor.eval()
        for sample in self._some():
            units = [_size(spec) for spec in sample.specs]
            images = {image for _, image in units}
            if len(images) == 1 and not images & found.keys():
                batch = self.collate([sample])["batch"]
                videos = self.model.features(batch)
                tokens = self.model.compress(videos, Context(targets=batch.targets)).tokens
                found[images.pop()] = sum(map(len, tokens)) / sum(size for size, _ in units)
        compressor.train(training)
        return found

    def _some(self) -> Iterable[Sample]:
        """Samples to judge all by: all of them; of streamed ones some, from all over the files."""
        step = max(1, len(self.samples) // SOME) if self.config.train.streaming else 1
        return (self.samples[index] for index in range(0, len(self.samples), step))

    def hash(self) -> str:
        """Of all records, and of how often they are drawn; of streamed ones of the files."""
        train = self.config.train
        files = train.files if train.streaming else []
        content = list(map(seen_hash, files)) or [sample.record.model_dump() for sample in self.samples]
        drawn = [entry.model_dump(exclude={"path"}) for entry in train.data if isinstance(entry, DataConfig)]
        return text_hash(json.dumps([content, drawn, self.config.seed] if drawn else content))

    # ---- batches

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """One batch. `counts`: over how many items each loss will be summed. A batch without videos has a blank one."""
        shown = [(sample, spec) for sample in samples for spec in sample.specs]
        videos, media = self._videos([spec for _, spec in shown])
        texts = self._prompts(samples, media)
        targets = [self.targets(sample) for sample, _ in shown]
        named = {name: [each.get(name) for each in targets] or [None] for name in self.target_names}
        if self.states is not None:
            found = [self.states[sample] for sample in samples if sample.specs]
            named["states"] = list(chain.from_iterable(found)) or [None]
        packed, where = self.config.train.packing, [sample.where for sample in samples]
        batch = VideoBatch(**videos, **texts, targets=named, blank=not shown, packed=packed, where=where)
        if any(sample.padding for sample in samples):
            return {"batch": _as_padding(batch), "counts": {}}
        return {"batch": batch, "counts": self._counts(batch.prompts, targets)}

    @cached_property
    def target_names(self) -> list[str]:
        """Names of the targets that any video has."""
        shown = (sample for sample in self._some() if sample.specs)
        return list(dict.fromkeys(name for sample in shown for name in self.targets(sample)))

    def _counts(self, prompts: Sequence[Prompt], targets: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        learned = sum(int((prompt.labels[1:] != IGNORED).sum()) for prompt in prompts if prompt.labels is not None)
        counts = dict.fromkeys(self.objective.names, learned)
        for per_video in targets:
            for name, count in self.model.compressor.loss_counts(per_video).items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def _videos(self, specs: Sequence[FrameSpec]) -> tuple[dict[str, list], list[VideoFeatures]]:
        """Fields of a batch: grids or frames of its videos, a blank one if there is none; what prompts read of them."""
        backbone = self.model.backbone
        if self.online:
            frames = self._decoded(specs)
            media = [backbone.outline(video) for video in frames]
            frames = frames or [backbone.blank()]
            return {"raw": [], "seconds": [video.seconds for video in frames], "frames": frames}, media
        found = [self._grids(spec) for spec in specs]
        media = [VideoFeatures((), grids, seconds) for grids, seconds in found]
        found = found or [self._blank or self._encoded_blank()]
        return {"raw": [grids for grids, _ in found], "seconds": [seconds for _, seconds in found]}, media

    def _grids(self, spec: FrameSpec) -> _Encoded:
        """Kept grids and times [T] of a video; without values where stored states stand for them."""
        if not self._shapes_only:
            return self.features.kept(spec)
        if spec not in self._outlines:
            grids, seconds = self.features.kept(spec)
            self._outlines[spec] = _outlined(grids), seconds
        return self._outlines[spec]

    @cached_property
    def _shapes_only(self) -> bool:
        """Whether nobody reads the grids' values."""
        needs = self.model.compressor.needs_with_states
        if self.states is None or self.objective.whole or needs is None:
            return False
        return not needs & {"encoder", "projected", "saliency"}

    def _encoded_blank(self) -> _Encoded:
        """The video of batches without one; made before data loader's workers start, which have no accelerator."""
        frames = self.model.backbone.blank()
        grids = {name: grid.to(torch.device("cpu")) for name, grid in self._encode(frames).items()}
        return _outlined(grids) if self._shapes_only else grids, frames.seconds

    @torch.no_grad()
    def _encode(self, video: Frames) -> Grids:
        return self.model.backbone.encode([video], self.model.compressor.needs)[0]

    def _decoded(self, specs: Sequence[FrameSpec]) -> list[Frames]:
        """Decode videos in threads; in a data loader's worker process, which works ahead by itself, one by one."""
        return list(map(read_spec, specs) if get_worker_info() is not None else self._threads.map(read_spec, specs))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(MAX_THREADS, max(2, torch.get_num_threads())))

    def _prompts(self, samples: Sequence[Sample], media: list[VideoFeatures]) -> dict[str, Any]:
        """Fields of a batch: prompts, those for uncompressed videos where they differ, `shows` and `questions`."""
        compressor = self.model.compressor
        prompts, whole, shows, questions = [], [], [], []
        first = 0
        for sample in samples:
            numbers = tuple(range(first, first + len(sample.specs)))
            videos, first = [media[number] for number in numbers], first + len(numbers)
            asked = self._conversations(sample)
            if "question" in compressor.needs:
                text = ids_of(self.model.backbone.tokenizer, question_of(asked[0]))
                questions += [text] * len(videos)
            if not self.objective.reads:
                continue
            prompts.append(self._prompt(asked, videos, compressor.frames_per_segment))
            if self.objective.whole and compressor.frames_per_segment != 1:
                whole.append(self._prompt(asked, videos, 1))
            shows.append(numbers)
        asks = (questions or [torch.zeros(1, dtype=torch.long)]) if "question" in compressor.needs else None
        return {"prompts": prompts, "whole": whole, "shows": shows, "questions": asks}

    def _conversations(self, sample: Sample) -> list[list[dict]]:
        """Chat messages of each question drawn, with its answer; or those of the record."""
        record, videos = sample.record, len(sample.specs)
        if record.messages:
            return [turns([(turn.role, turn.content) for turn in record.messages], videos)]
        asked = [(question.prompt(), question.answer) for question in self.drawn(sample)]
        return [conversation(text, self.replies.get((record.id, text), answer), videos) for text, answer in asked]

    def _prompt(self, asked: list[list[dict]], media: list[VideoFeatures], segment_steps: int) -> Prompt:
        """What is read and learned; several questions about the same videos share them."""
        prompts = [self.model.backbone.prompt(messages, True, media, segment_steps) for messages in asked]
        return prompts[0] if len(prompts) == 1 else share_video(prompts)


def _sizes(samples: Sequence[Sample], entries: int) -> list[int]:
    """How many samples there are of each entry of `train.data`."""
    if isinstance(samples, StreamedSamples):
        return samples.sizes
    found = Counter(sample.entry for sample in samples)
    return [found[number] for number in range(entries)]


def _size(spec: FrameSpec) -> tuple[float, bool]:
    """Frames that are read of a medium, in pixels where they are resized, and whether it is an image."""
    frames = spec.segments * spec.frames_per_segment
    return frames * math.prod(spec.size or (1,)), frames == 1


def _outlined(grids: Grids) -> Grids:
    """The shapes [T,H,W,0] of grids."""
    return {name: FeatureGrid(grid.values[..., :0].clone(), size=grid.size) for name, grid in grids.items()}


def _as_padding(batch: VideoBatch) -> VideoBatch:
    """A batch whose calls are made, and from which nothing is learned."""
    prompts, whole = (
        [replace(prompt, labels=torch.full_like(prompt.ids, IGNORED)) for prompt in each]
        for each in (batch.prompts, batch.whole)
    )
    return replace(batch, prompts=prompts, whole=whole, blank=True)
