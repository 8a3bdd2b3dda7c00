"""LangDC: each segment's caption, read as hidden states of a captioner, stands for the segment.

Letters: T frames, H W patch grid, C encoder width, Z captioner width, D backbone width, S segments, N tokens.
Source: LangDC (arXiv 2509.00969), section 4; "CapPruner" there is the captioner, "BasePruner" the base.
"""

import torch
from torch import Tensor, nn

from langdc.captioner import Captioner, CaptionOutput, SoftToken
from langdc.compressors.base import compressors
from langdc.interfaces import CaptionCompressor, Captioned
from langdc.projectors import average_pool, build_projector
from langdc.sources import Source
from langdc.types import VideoFeatures, VideoTokens


@compressors.register("langdc")
class LangDC(CaptionCompressor):
    """Caption every segment and hand the language model the states of the caption tokens.

    `streams`: encoder widths by name and `width`: the backbone's, both filled in from the backbone. `pool`: side per
    stream of the captioner's visual tokens (12 and 8 at full size: 832 per segment; 0 leaves a stream out).
    `captioner`: source of the light language model; `prompt`, `layer`, `soft_token`, `max_soft_tokens` as in
    `Captioner`. `base`: {"name": ..., ...} of a compressor whose tokens come first (the dual form), None for captions
    only. `segment_marker`: a learned token before each segment's (ours; the paper has none), for up to `max_segments`
    segments.
    """

    paper = "arXiv 2509.00969"

    def __init__(
        self,
        width: int,
        streams: dict[str, int],
        captioner: Source,
        prompt: str,
        layer: int,
        pool: list[int],
        soft_token: SoftToken = "at",
        max_soft_tokens: int = 128,
        captioner_tokenizer: str | None = None,
        projector: str = "mlp2x_gelu",
        post_projector: str = "linear",
        base: dict | None = None,
        segment_marker: bool = False,
        max_segments: int = 64,
        frames_per_segment: int = 4,
        attention: str = "sdpa",
    ) -> None:
        super().__init__()
        if len(pool) != len(streams):
            raise ValueError(f"pool has {len(pool)} sides, the backbone has the streams {', '.join(streams)}.")
        if not any(pool):
            raise ValueError(f"pool is {pool}, which leaves every stream out; give a positive side, such as [12, 8].")
        self.pool = dict(zip(streams, pool, strict=True))
        self.frames_per_segment = frames_per_segment
        self.captioner = Captioner(
            captioner, prompt, layer, soft_token, max_soft_tokens, captioner_tokenizer, attention
        )
        self.projectors = nn.ModuleDict(
            {name: build_projector(projector, wide, self.captioner.width) for name, wide in streams.items()}
        )
        self.post_projector = build_projector(post_projector, self.captioner.width, width)
        marker = torch.randn(max_segments, width) * 0.02 if segment_marker else None
        self.segment_marker = nn.Parameter(marker) if marker is not None else None
        self.base = compressors.build(**base) if base is not None else None

    @property
    def needs(self) -> frozenset[str]:
        """Raw grids for the captioner, and whatever the base needs."""
        return frozenset({"encoder"}) | (self.base.needs if self.base is not None else frozenset())

    def visual(self, videos: list[VideoFeatures]) -> list[Tensor]:
        """The captioner's visual tokens of every segment: per segment, all frames of each stream in turn [n,Z]."""
        streams = []
        for name, projector in self.projectors.items():
            if not self.pool[name]:
                continue
            grids = [video.encoder[name].values for video in videos]
            pooled = average_pool(projector(torch.cat(grids)), self.pool[name])
            frames = pooled.flatten(1, 2).split([len(grid) for grid in grids])
            streams.append([part.flatten(0, 1) for video in frames for part in video.split(self.frames_per_segment)])
        return [torch.cat(parts) for parts in zip(*streams, strict=True)]

    def segments(self, video: VideoFeatures) -> int:
        """S of a video."""
        frames = len(next(iter(video.encoder.values())).values)
        return -(-frames // self.frames_per_segment)

    def supervised(self, videos: list[VideoFeatures], targets: list[list[Tensor]]) -> Captioned:
        for video, captions in zip(videos, targets, strict=True):
            if len(captions) != self.segments(video):
                raise ValueError(f"{len(captions)} captions for a video of {self.segments(video)} segments.")
        written = self.captioner.supervised(self.visual(videos), [ids for captions in targets for ids in captions])
        return self._grouped(videos, written)

    def read(self, videos: list[VideoFeatures], captions: list[list[Tensor]]) -> list[list[Tensor]]:
        """The states [n,Z] of given captions by segment, as `supervised` has them, without their loss."""
        states = iter(self.captioner.read(self.visual(videos), [ids for of_video in captions for ids in of_video]))
        return [[next(states) for _ in range(self.segments(video))] for video in videos]

    def caption(self, videos: list[VideoFeatures], synced: bool = False) -> Captioned:
        return self._grouped(videos, self.captioner.write(self.visual(videos), synced))

    def _grouped(self, videos: list[VideoFeatures], written: CaptionOutput) -> Captioned:
        ids, states = iter(written.ids), iter(written.states)
        counts = [range(self.segments(video)) for video in videos]
        return Captioned(
            states=[[next(states) for _ in count] for count in counts],
            ids=[[next(ids) for _ in count] for count in counts],
            loss=written.loss,
            targets=written.targets,
        )

    def project(self, videos: list[VideoFeatures], states: list[list[Tensor]]) -> list[VideoTokens]:
        flat = [state for of_video in states for state in of_video]
        projected = iter(self.post_projector(torch.cat(flat)).split([len(state) for state in flat]))
        tokens = [self._caption_tokens([next(projected) for _ in of_video]) for of_video in states]
        if self.base is None:
            return tokens
        return [_join(first, then) for first, then in zip(self.base.batch(videos), tokens, strict=True)]

    def _caption_tokens(self, segments: list[Tensor]) -> VideoTokens:
        if self.segment_marker is not None:
            if len(segments) > len(self.segment_marker):
                raise ValueError(f"A video of {len(segments)} segments; max_segments is {len(self.segment_marker)}.")
            marks = self.segment_marker.to(segments[0].dtype)
            segments = [torch.cat([marks[i : i + 1], part]) for i, part in enumerate(segments)]
        lengths = torch.tensor([len(part) for part in segments], device=segments[0].device)
        number = torch.arange(len(segments), device=lengths.device)
        return VideoTokens(torch.cat(segments), number.repeat_interleave(lengths))

    def batch(self, videos: list[VideoFeatures]) -> list[VideoTokens]:
        return self.project(videos, self.caption(videos).states)

    def forward(self, video: VideoFeatures) -> VideoTokens:
        return self.batch([video])[0]


def _join(first: VideoTokens, then: VideoTokens) -> VideoTokens:
    return VideoTokens(torch.cat([first.values, then.values]), torch.cat([first.segment, then.segment]))
