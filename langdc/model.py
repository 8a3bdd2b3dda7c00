"""A model as users mean it: a backbone and a compressor, put together from settings.

Letters: S segments, N tokens.
"""

import inspect

import torch
from torch import Tensor, nn

from langdc.backbones import backbones
from langdc.compressors import compressors
from langdc.compressors.langdc import LangDC
from langdc.config import MemberConfig, ModelConfig
from langdc.interfaces import Backbone, TokenCompressor
from langdc.types import VideoFeatures, VideoTokens


class VideoModel(nn.Module):
    """A backbone with a compressor; `config` is what it was built from.

    `untrained`: names of the backbone's projectors that no stage has trained, where weights of a checkpoint were
    loaded.
    """

    untrained: frozenset[str] = frozenset()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbones.build(config.backbone.name, **config.backbone.settings)
        self.compressor = build_compressor(config.compressor, self.backbone)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.parameters()).device

    @property
    def captioner(self) -> LangDC:
        """The compressor, if it writes captions; ValueError otherwise."""
        if not isinstance(self.compressor, LangDC):
            raise ValueError(f"The compressor {self.config.compressor.name!r} writes no captions; 'langdc' does.")
        return self.compressor

    def check_serves(self, compressor: TokenCompressor) -> None:
        """ValueError for a compressor whose tokens the backbone cannot place, or that would work on untrained
        weights.
        """
        named = type(compressor).__name__
        if self.backbone.needs_places and not compressor.keeps_places:
            raise ValueError(
                f"{named} makes new tokens, but features of {type(self.backbone).__name__} that follow each token need "
                "its place in the video. Choose a compressor that selects tokens."
            )
        if "projected" in compressor.needs and self.untrained:
            raise ValueError(
                f"{named} takes the features of the backbone's projectors, which this checkpoint does not hold: it was "
                f"trained with {self.config.compressor.name!r}, which goes without ({len(self.untrained)} tensors, "
                f"such as {min(self.untrained)}, would be random). Take a checkpoint that was trained with a "
                "compressor of these features, such as 'pool'."
            )

    def tokens(self, videos: list[VideoFeatures], states: list[list[Tensor]] | None = None) -> list[VideoTokens]:
        """Compress videos; `states` are a captioner's, when they are known already."""
        if states is not None:
            return self.captioner.project(videos, states) if states else []
        return self.compressor.batch(videos) if videos else []


def build_compressor(config: MemberConfig, backbone: Backbone) -> TokenCompressor:
    """Build a compressor for a backbone: settings that only the backbone knows are filled in where the class asks for
    them.
    """
    steps = backbone.frames_per_segment // backbone.frames_per_step
    known = {"width": backbone.width, "streams": backbone.stream_widths, "frames_per_segment": steps}
    asked = inspect.signature(compressors.get(config.name)).parameters
    filled = {name: value for name, value in known.items() if name in asked}
    return compressors.build(config.name, **{**filled, **config.settings})
