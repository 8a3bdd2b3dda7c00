"""What a compressor's frozen part makes of every video, computed once before the first step."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor

from langdc.features import FeatureStore
from langdc.hashing import text_hash
from langdc.model import VideoModel
from langdc.store import TensorStore
from langdc.train.samples import Sample
from langdc.types import Context, FrameSpec, VideoBatch

FRAMES = 256  # at once: 16 videos of 16 frames, or 256 images


class FrozenStates:
    """`Compressed.states` of every sample's videos, read from the store when asked.

    Kept as long as the frozen part's `identity`, the features and the targets are the same.
    """

    def __init__(
        self,
        model: VideoModel,
        features: FeatureStore,
        samples: Sequence[Sample],
        targets: Callable[[Sample], Mapping[str, Any]],
        identity: str,
    ) -> None:
        self.model, self.features, self.targets, self.identity = model, features, targets, identity
        folder = features.store.folder
        self.store = TensorStore(folder.with_name("states") if folder else None)
        self.videos = [(sample, spec) for sample in samples for spec in sample.specs]
        keys = [self._key(sample, spec) for sample, spec in self.videos]
        self.keys: dict[int, list[str]] = {}
        for (sample, _), key in zip(self.videos, keys, strict=True):
            self.keys.setdefault(sample.index, []).append(key)
        training = model.compressor.training
        model.compressor.eval()  # layers that recompute their activations in training keep no cache
        self.store.fill(keys, self._computed, "Computing states")
        model.compressor.train(training)

    def __getitem__(self, sample: Sample) -> list[list[Tensor]]:
        found = [self.store[key] for key in self.keys[sample.index]]
        return [[states[name] for name in sorted(states, key=int)] for states in found]

    def _key(self, sample: Sample, spec: FrameSpec) -> str:
        targets = json.dumps(self.targets(sample), default=lambda tensor: tensor.tolist(), sort_keys=True)
        return text_hash(f"{self.identity} {self.features.key(spec)} {targets}")

    def _chunks(self, numbers: list[int]) -> Iterator[list[int]]:
        """Numbers of videos to compute at once, of one length each, so that steps of a captioner share a shape."""

        def frames(number: int) -> int:
            spec = self.videos[number][1]
            return spec.segments * spec.frames_per_segment

        for length, group in groupby(sorted(numbers, key=frames), frames):
            same, step = list(group), max(1, FRAMES // length)
            yield from (same[first : first + step] for first in range(0, len(same), step))

    @torch.no_grad()
    def _computed(self, numbers: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        compressor = self.model.compressor
        for chunk in self._chunks(numbers):
            chosen = [self.videos[number] for number in chunk]
            found = [self.features.kept(spec) for _, spec in chosen]
            videos = self.model.features(VideoBatch([grids for grids, _ in found], [seconds for _, seconds in found]))
            each = [self.targets(sample) for sample, _ in chosen]
            targets = {name: [per_video.get(name) for per_video in each] for name in chain.from_iterable(each)}
            states = compressor(videos, Context(targets=targets, wanted=frozenset({"states"}))).states
            if states is None:
                raise ValueError(f"{type(compressor).__name__} has a frozen identity and returned no states.")
            for number, per_video in zip(chunk, states, strict=True):
                if not all(part.isfinite().all() for part in per_video):
                    what = f"{self.videos[number][0].where}: the frozen part of {type(compressor).__name__}"
                    raise ValueError(f"{what} gives NaN or infinity. Look at its video, or take the record out.")
                yield number, {str(n): part.cpu().contiguous() for n, part in enumerate(per_video)}
