"""The captioner learns to describe: cross-entropy on the target caption of every segment."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from langdc.backbones.chat import IGNORED
from langdc.data.records import Record
from langdc.flops import caption_flops
from langdc.model import VideoModel
from langdc.training.counts import caption_counts
from langdc.training.objectives import LossModule, Objective, as_features, passes, scaled
from langdc.training.samples import Sample, check_segments
from langdc.types import Frames, VideoFeatures


class CaptionModule(LossModule):
    """The captioner's cross-entropy on its target captions."""

    def forward(
        self,
        captions: list[list[Tensor]],
        labels: Tensor,
        grids: dict[str, list[Tensor]] | None = None,
        frames: list[Frames] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        videos = as_features(self.model, self.grids(grids, frames))
        found = self.model.captioner.supervised(videos, captions)
        self.flops = self._flops(videos, captions)
        self.counts = caption_counts(self.model.captioner, videos, captions)
        self.parts = {"caption": (found.loss.detach(), found.targets)}
        return {"loss": scaled(found.loss, found.targets, num_items_in_batch)}

    def _flops(self, videos: list[VideoFeatures], captions: list[list[Tensor]]) -> float:
        compressor = self.model.captioner
        forward = sum(
            caption_flops(compressor, video.encoder, [len(caption) for caption in of_video], given="scored")
            for video, of_video in zip(videos, captions, strict=True)
        )
        return forward * passes(compressor.captioner) + self.looking_flops(videos)


class CaptionObjective(Objective):
    """Learn the target caption of every segment, its end included."""

    def __init__(self, model: VideoModel, *args, **settings) -> None:
        model.captioner  # noqa: B018 - the error for models without one
        super().__init__(model, *args, **settings)
        self.module = CaptionModule(model, self.looks)

    def wants(self, record: Record) -> bool:
        return bool(record.segments) and (record.video is not None or record.image is not None)

    def check_samples(self) -> None:
        check_segments(self.samples, self.phase.data)

    def collate(self, samples: list[Sample]) -> dict:
        captions = encoded(self.model, samples)
        end = torch.tensor([self.model.captioner.captioner.tokenizer.eos_token_id])
        targets = [torch.cat([caption, end]) for of_video in captions for caption in of_video]
        labels = pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        return {**self.seen(samples), "captions": captions, "labels": labels}


def encoded(model: VideoModel, samples: list[Sample]) -> list[list[Tensor]]:
    """The captioner's ids of the samples' captions, by segment."""
    encode = model.captioner.captioner.encode
    return [[encode(segment.caption) for segment in sample.record.segments] for sample in samples]
