"""VideoGPT+: an image and a video encoder, projectors, any causal language model.

Letters: T frames, H W patch grid, C encoder width, D backbone width, N tokens.
Source: VideoGPT+ (arXiv 2406.09418) and LangDC (2509.00969), section 4.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from langdc.backbones.base import backbones
from langdc.backbones.chat import chat_prompt
from langdc.backbones.splice import splice_all
from langdc.decoders import known_decoder
from langdc.encoders import Encoder, encoders
from langdc.interfaces import Backbone
from langdc.language_models import Quantize, end_ids, load_language_model, load_tokenizer
from langdc.projectors import Places, build_projector
from langdc.sources import Source
from langdc.types import FeatureGrid, Frames, FrameSpec, Grids, Prompt, Spliced, VideoFeatures, VideoTokens
from langdc.video import is_image

STREAMS = ("image", "video")


@backbones.register("videogpt_plus")
class VideoGPTPlus(Backbone):
    """Two encoders see every frame (one frame by frame, one in segments); their grids are projected to backbone width.

    `language_model`, `tokenizer`: sources; the tokenizer's defaults to the model's directory. `image_encoder`,
    `video_encoder`: {"name": ..., ...} of the encoder zoo. `projector`: kind of both projectors, or "identity" for
    compressors that bring their own. `system`: system message, None for the chat template's own. `quantize`: "nf4" to
    keep the language model's linear layers in 4 bits (QLoRA). `text`: whether the language model's weights are loaded;
    without them only `encode` and `project` work. `decoder`: what reads videos ("pyav", "decord", "torchcodec").
    `places`: whether projected features say by learned vectors when and where they were seen, as tokens need that are
    chosen among (VideoGPT+ has none).
    """

    def __init__(
        self,
        language_model: Source,
        image_encoder: dict,
        video_encoder: dict,
        tokenizer: str | None = None,
        projector: str = "mlp2x_gelu",
        segments: int = 4,
        frames_per_segment: int = 4,
        system: str | None = None,
        attention: str = "sdpa",
        quantize: Quantize | None = None,
        text: bool = True,
        decoder: str = "pyav",
        places: bool = False,
    ) -> None:
        super().__init__()
        self.segments, self.frames_per_segment, self.system = segments, frames_per_segment, system
        self.decoder = known_decoder(decoder)
        if text:
            self.language_model = load_language_model(language_model, attention, quantize=quantize)
        else:
            with torch.device("meta"):  # only its sizes are asked for
                self.language_model = load_language_model(language_model, attention)
        self.tokenizer = load_tokenizer(language_model if tokenizer is None else tokenizer)
        self._members = (image_encoder, video_encoder)
        built = [encoders.of(member).requires_grad_(False).eval() for member in self._members]
        self.encoders = nn.ModuleDict(dict(zip(STREAMS, built, strict=True)))
        widths = self.stream_widths.items()
        self.projectors = nn.ModuleDict({name: build_projector(projector, w, self.width) for name, w in widths})
        steps, sides = segments * frames_per_segment, [(name, encoder.side) for name, encoder in self._encoders()]
        self.places = nn.ModuleDict({name: Places(steps, side, self.width) for name, side in sides if places})

    @property
    def preprocessing(self) -> str:
        return f"{super().preprocessing} {self._members}"

    @property
    def width(self) -> int:
        return self.language_model.config.hidden_size

    @property
    def stream_widths(self) -> dict[str, int]:
        return {name: encoder.width for name, encoder in self._encoders()}

    def _encoders(self) -> list[tuple[str, Encoder]]:
        return [(name, encoder) for name, encoder in self.encoders.items() if isinstance(encoder, Encoder)]

    @property
    def text_model(self) -> nn.Module:
        return self.language_model.base_model

    @property
    def end_ids(self) -> list[int]:
        return end_ids(self.language_model, self.tokenizer)

    def frame_spec(
        self, path: str | Path, start: float | None = None, end: float | None = None, fps: float | None = None
    ) -> FrameSpec:
        if fps is None and is_image(path):
            return FrameSpec(Path(path), 1, 1)
        return FrameSpec(Path(path), self.segments, self.frames_per_segment, start, end, fps=fps, decoder=self.decoder)

    def encode(self, videos: list[Frames], need: frozenset[str] = frozenset(), synced: bool = False) -> list[Grids]:
        if not videos:
            return []
        # encoders make a call for images and one for videos; a dummy stands for what is missing of them
        images = {len(video) == 1 for video in videos}
        filled = [*videos, *([self._filler(kind) for kind in {True, False} - images] if synced else [])]
        device = next(self.encoders.parameters()).device
        filled = [Frames(video.pixels.to(device, non_blocking=True), video.seconds) for video in filled]  # once for all
        grids = {name: encoder(filled) for name, encoder in self.encoders.items()}
        return [{name: grids[name][number] for name in grids} for number in range(len(videos))]

    def _filler(self, image: bool) -> Frames:
        count = 1 if image else self.frames_per_segment
        return Frames(torch.zeros(count, 3, 32, 32, dtype=torch.uint8), torch.zeros(count))

    def project(self, encoded: Sequence[Grids], seconds: list[Tensor], need: frozenset[str]) -> list[VideoFeatures]:
        # one call per projector for all videos, so that every rank of a sharded run makes the same calls
        streams = []
        for name, projector in self.projectors.items() if "projected" in need else ():
            lengths = [len(grids[name].values) for grids in encoded]
            values = projector(torch.cat([grids[name].values for grids in encoded]))
            if name in self.places:
                values = values + self.places[name](lengths)
            streams.append([FeatureGrid(part) for part in values.split(lengths)])
        projected = list(zip(*streams, strict=True)) if streams else [()] * len(encoded)
        return [VideoFeatures(*each) for each in zip(projected, encoded, seconds, strict=True)]

    def prompt(
        self, messages: list[dict], learn: bool = False, media: Sequence[VideoFeatures] = (), segment_steps: int = 1
    ) -> Prompt:
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return chat_prompt(self.tokenizer, messages, self.end_ids, learn)

    def splice(self, prompts: list[Prompt], tokens: list[list[VideoTokens]]) -> list[Spliced]:
        return splice_all(self.language_model.get_input_embeddings(), prompts, tokens)
