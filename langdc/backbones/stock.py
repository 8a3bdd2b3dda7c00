"""What stock vision-language models share as backbones. Letters: T steps of time, H W token grid, D backbone width."""

import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoModelForImageTextToText as AnyModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from langdc import devices
from langdc.backbones.chat import checked_parts, marked_prompt
from langdc.backbones.splice import splice_all
from langdc.decoders import known_decoder
from langdc.interfaces import Backbone
from langdc.language_models import (
    VIDEO_MARK,
    Quantize,
    end_ids,
    four_bits,
    load_pretrained,
    load_tokenizer,
    mark_four_bits,
    mark_published,
    templated,
)
from langdc.log import get_logger
from langdc.modelfiles import read_config, reading
from langdc.rope import yarn as stretch
from langdc.sources import Source, resolve
from langdc.types import FrameSpec, Grids, Prompt, Slot, Spliced, VideoFeatures, VideoTokens
from langdc.video import is_image, probe

logger = get_logger(__name__)

PREPROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
SEEN = (("size", "min_pixels", "max_pixels"), ("image_mean",), ("image_std",))
"""Preprocessor settings that decide what an encoder sees, each with names that may replace it."""
ENCODER_PARTS = ("visual", "vision_tower", "vision_model", "multi_modal_projector", "projector")
"""Modules that `quantize` leaves whole."""
TYPES = {"auto": "auto", **devices.TYPES}


class StockBackbone(Backbone):
    """A vision-language model of transformers, unchanged, from a checkpoint directory.

    `source`: that directory (or {config: ..., init: random}). A video is sampled uniformly: `frames` of it, or `fps`
    per second, at most `frames`. `tokenizer`: directory of a tokenizer, by default the model's own. `dtype`: "auto" is
    the checkpoint's own. `yarn`: factor by which the range of positions is stretched (4 in ReTaKe and AdaReTaKe).
    `quantize`: "nf4" to keep the language model's linear layers in 4 bits (QLoRA). `text`: whether the language model
    is loaded; without it only `encode` and `project` work. `decoder`: what reads videos ("pyav", "decord",
    "torchcodec").
    """

    model_types: ClassVar[tuple[str, ...]]
    """What a checkpoint's config.json may call itself."""
    placeholders: ClassVar[Mapping[str, str]] = {"video": "<|video_pad|>", "image": "<|image_pad|>"}
    """What the chat template writes for each kind of part."""
    image_processor_class: ClassVar[type]
    video_processor_class: ClassVar[type]

    def __init__(
        self,
        source: Source,
        frames: int = 32,
        fps: float | None = None,
        tokenizer: str | None = None,
        dtype: str = "auto",
        attention: str = "sdpa",
        yarn: float | None = None,
        quantize: Quantize | None = None,
        text: bool = True,
        decoder: str = "pyav",
    ) -> None:
        super().__init__()
        if frames < 1 or (fps is not None and fps <= 0):
            raise ValueError(f"frames={frames}, fps={fps}: give at least one frame, and more than 0 per second.")
        if dtype not in TYPES:
            raise ValueError(f"dtype={dtype!r}; allowed are {', '.join(TYPES)}.")
        self.frames, self.fps, self.decoder = frames, fps, known_decoder(decoder)
        self.source, self.yarn, self.quantize, self.text = source, yarn, quantize, text
        self.model = self._load(source, TYPES[dtype], attention).eval().requires_grad_(False)
        self._tokenizer_source = tokenizer
        self.frames_per_segment = self.frames_per_step
        self.segments = max(1, frames // self.frames_per_segment)

    def _load(self, source: Source, dtype: Any, attention: str) -> PreTrainedModel:
        found = resolve(source, weights=True)
        config: Any = read_config(found) if isinstance(found, Path) else found.sizes()
        if config.model_type not in self.model_types:
            served = ", ".join(self.model_types)
            raise ValueError(f"A {config.model_type!r} checkpoint was given; this backbone is for {served}.")
        if self.yarn is not None:
            stretch(config.get_text_config(), self.yarn)
        whole = deepcopy(config.get_text_config())
        if not self.text:
            _set_layers(config.get_text_config(), 0, [])  # absent layers are neither made nor read
        model = self._load_model(found, config, dtype, attention)
        if not self.text:
            for part in (model.base_model.language_model, model.get_output_embeddings()):
                part.to("meta")
            for stated in (model.config.get_text_config(), model.base_model.language_model.config):
                _set_layers(stated, whole.num_hidden_layers, getattr(whole, "layer_types", None))
        return mark_published(model, source, found)

    def _load_model(self, found: Any, config: Any, dtype: Any, attention: str) -> Any:
        options = {"config": config, "attn_implementation": attention}
        if self.quantize is not None and self.text:
            model = load_pretrained(AnyModel, found, **options, **four_bits(self.quantize, found, ENCODER_PARTS))
            return mark_four_bits(model, model.base_model.language_model)
        unread = () if self.text else ("model.language_model.layers.",)
        return load_pretrained(AnyModel, found, unread, dtype=dtype, **options)

    # ---- parts of the model

    @property
    def language_model(self) -> PreTrainedModel:
        return self.model

    @property
    def text_model(self) -> nn.Module:
        return self._inner.language_model

    @property
    def _inner(self) -> Any:
        """The model without its head; its attributes differ by family."""
        return self.model.base_model

    @property
    def vision(self) -> Any:
        """The vision encoder."""
        return self._inner.visual

    @property
    def encoders(self) -> nn.ModuleDict:
        return nn.ModuleDict({"video": self.vision})

    @property
    def projectors(self) -> nn.ModuleDict:
        return nn.ModuleDict()

    @property
    def width(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def stream_widths(self) -> dict[str, int]:
        return {"video": self.width}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._tokenizer_source or self.source)

    @property
    def end_ids(self) -> list[int]:
        return end_ids(self.model, self.tokenizer)

    def _processor(self, kind: Any) -> Any:
        """An image or video processor from the checkpoint's files. Other settings are those of the model or, with a
        warning, of the class. ValueError if the files contradict the model.
        """
        folder, known, stated = resolve(self.source), self._processor_settings(), {}
        with reading(str(folder), f"a {kind.__name__}"):
            if isinstance(folder, Path) and any((folder / name).is_file() for name in PREPROCESSOR_FILES):
                read = getattr(kind, "get_video_processor_dict", None) or kind.get_image_processor_dict
                stated = dict(read(folder)[0])
            made = kind.from_dict({**known, **stated})
        for key, value in known.items():
            if isinstance(value, int) and stated.get(key, value) != value:
                raise ValueError(
                    f"{folder}: its preprocessor settings state {key} {stated[key]}, its config.json {value}. Copy "
                    "both from one published model."
                )
        lacking = [names[0] for names in SEEN if not {*names} & {*known, *stated}]
        if lacking and isinstance(folder, Path):
            logger.warning(
                f"{folder}: no {' or '.join(PREPROCESSOR_FILES)} states {' and '.join(lacking)}. The defaults of "
                f"{kind.__name__} may show frames in other sizes and colours. Copy the files of the published model."
            )
        return made

    def _processor_settings(self) -> dict[str, Any]:
        return {}

    @cached_property
    def image_processor(self) -> Any:
        """From an image to the encoder's input."""
        return self._processor(self.image_processor_class)

    @cached_property
    def video_processor(self) -> Any:
        """From frames to the encoder's input."""
        return self._processor(self.video_processor_class)

    # ---- from a file to features

    def frame_spec(
        self, path: str | Path, start: float | None = None, end: float | None = None, fps: float | None = None
    ) -> FrameSpec:
        if fps is None and is_image(path):
            return FrameSpec(Path(path), 1, 1)
        info = probe(path, fps)
        count = self.frames
        if self.fps is not None:
            seconds = (info.seconds if end is None else end) - (start or 0.0)
            count = min(count, max(self.frames_per_step, round(seconds * self.fps)))
        count = -(-count // self.frames_per_step) * self.frames_per_step
        size = self.read_size(count, info.height, info.width)
        return FrameSpec(Path(path), 1, count, start, end, size, "bicubic", fps, self.decoder)

    @property
    def preprocessing(self) -> str:
        processors = [vars(self.image_processor), vars(self.video_processor)]
        settings = json.dumps(processors, default=str, sort_keys=True)
        return f"{type(self).__name__} {self.frames} {self.fps} {settings}{self.other_decoder}"

    @abstractmethod
    def read_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width that the encoder takes; frames are resized to it while they are read."""

    def project(self, encoded: Sequence[Grids], seconds: list[Tensor], need: frozenset[str]) -> list[VideoFeatures]:
        return [VideoFeatures(tuple(g.values()), g, times) for g, times in zip(encoded, seconds, strict=True)]

    # ---- from messages to embeddings

    def prompt(
        self, messages: list[dict], learn: bool = False, media: Sequence[VideoFeatures] = (), segment_steps: int = 1
    ) -> Prompt:
        allowed, reserved = ("text", "video", "image"), [*self.placeholders.values()]
        laid_out = [{**m, "content": checked_parts(m, allowed, self.tokenizer, reserved)} for m in messages]
        shown = [part["type"] for m in laid_out for part in m["content"] if part["type"] != "text"]
        if len(shown) != len(media):
            raise ValueError(f"The messages show {len(shown)} videos and images, {len(media)} were given.")
        kinds = ["image" if video.is_image else kind for kind, video in zip(shown, media, strict=True)]
        names = iter(kinds)  # a video of one frame is an "image"
        for message in laid_out:
            message["content"] = [p if p["type"] == "text" else {"type": next(names)} for p in message["content"]]
        slots = [slot for number, video in enumerate(media) for slot in self.slots(number, video, segment_steps)]

        def render(messages: list[dict], reply_next: bool) -> str:
            return self.marked(templated(self.tokenizer, messages, reply_next), media, segment_steps)

        return marked_prompt(self.tokenizer, render, laid_out, self.end_ids, learn, slots)

    def marked(self, text: str, media: Sequence[VideoFeatures], segment_steps: int) -> str:
        """The template's text with a mark for every slot."""
        shown = iter([self.written(video, segment_steps) for video in media])
        return re.sub("|".join(map(re.escape, self.placeholders.values())), lambda _: next(shown, VIDEO_MARK), text)

    def written(self, video: VideoFeatures, segment_steps: int) -> str:
        """What stands for one video or image in a prompt: text with a mark for every slot."""
        return VIDEO_MARK

    def slots(self, number: int, video: VideoFeatures, segment_steps: int) -> list[Slot]:
        """The slots of one video, without their positions: one, or one per segment where text stands between them."""
        marks = self.written(video, segment_steps).count(VIDEO_MARK)
        return [Slot(0, number, segment if marks > 1 else None) for segment in range(marks)]

    def splice(self, prompts: list[Prompt], tokens: list[list[VideoTokens]]) -> list[Spliced]:
        return splice_all(self.model.get_input_embeddings(), prompts, tokens)


def _set_layers(config: Any, count: int, kinds: list[str] | None) -> None:
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = kinds
