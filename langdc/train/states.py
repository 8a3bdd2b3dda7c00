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
from langdc.types import Context, VideoBatch

FRAMES = 256  # at once: 16 videos of 16 frames, or 256 images


class FrozenStates:
    """`Compressed.states` of every sample's video, read from the store when asked.

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
        self.samples = [sample for sample in samples if sample.spec is not None]
        self.keys = {sample.index: self._key(sample) for sample in self.samples}
        training = model.compressor.training
        model.compressor.eval()  # layers that recompute their activations in training keep no cache
        self.store.fill(list(self.keys.values()), self._computed, "Computing states")
        model.compressor.train(training)

    def __getitem__(self, sample: Sample) -> list[Tensor]:
        found = self.store[self.keys[sample.index]]
        return [found[name] for name in sorted(found, key=int)]

    def _key(self, sample: Sample) -> str:
        assert sample.spec is not None  # as chosen
        targets = json.dumps(self.targets(sample), default=lambda tensor: tensor.tolist(), sort_keys=True)
        return text_hash(f"{self.identity} {self.features.key(sample.spec)} {targets}")

    def _chunks(self, numbers: list[int]) -> Iterator[list[int]]:
        """Numbers of samples to compute at once, of one length each, so that steps of a captioner share a shape."""

        def frames(number: int) -> int:
            spec = self.samples[number].spec
            assert spec is not None  # as chosen
            return spec.segments * spec.frames_per_segment

        for length, group in groupby(sorted(numbers, key=frames), frames):
            same, step = list(group), max(1, FRAMES // length)
            yield from (same[first : first + step] for first in range(0, len(same), step))

    @torch.no_grad()
    def _computed(self, numbers: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        compressor = self.model.compressor
        for chunk in self._chunks(numbers):
            chosen = [self.samples[number] for number in chunk]
            found = [self.features.kept(sample.spec) for sample in chosen if sample.spec is not None]
            videos = self.model.features(VideoBatch([grids for grids, _ in found], [seconds for _, seconds in found]))
            each = [self.targets(sample) for sample in chosen]
            targets = {name: [per_video.get(name) for per_video in each] for name in chain.from_iterable(each)}
            states = compressor(videos, Context(targets=targets, wanted=frozenset({"states"}))).states
            if states is None:
                raise ValueError(f"{type(compressor).__name__} has a frozen identity and returned no states.")
            for number, per_video in zip(chunk, states, strict=True):
                yield number, {str(n): part.cpu().contiguous() for n, part in enumerate(per_video)}
