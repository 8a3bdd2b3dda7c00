"""Who writes the captions of segments: a teacher that sees them, and a text model that makes its words dense.

LangDC's captions (arXiv 2509.00969, section 4.1 and appendix B) were written so: one model describes each segment,
another deletes filler, connectives and speculation. The length of what is left follows what there is to see.
"""

import json
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from langdc.config import check
from langdc.data.records import Record, SegmentRecord
from langdc.density import densities
from langdc.endpoint import SHOWN_LETTERS, Endpoint, EndpointConfig, Transient
from langdc.features import read_spec
from langdc.pipeline import VideoLM
from langdc.tools import options as shared
from langdc.types import Frames, FrameSpec
from langdc.video import is_image, jpeg_url, probe

SEGMENTS = FRAMES = 4
"""What the paper shows the captioner: 4 segments of 4 frames."""
_SHOWN = "Describe what this part of a video shows"
DESCRIBE = f"{_SHOWN}: every subject with its attributes, what it does, the background. Say only what can be seen."
"""The prompt of a teacher whose words a text model makes dense."""
DENSE = (
    f"{_SHOWN} in as few words as possible: subjects, attributes, actions, background. Short phrases separated by "
    "semicolons; no filler, no connectives, no speculation."
)
"""The prompt of a teacher whose words become the captions as they are."""
REWRITE = (
    "A description of a few seconds of a video is below. Make it dense: keep every subject, attribute, action and "
    "background that it states, in as few words as possible, and delete filler words, connectives, opinions and "
    "speculation. Then list these cues as they stand in the caption. Reply with one JSON object and nothing else: "
    '{"caption": "...", "subjects": [...], "attributes": [...], "actions": [...], "background": [...]}. Where nothing '
    "is described, the caption and the lists are empty.\n\nDescription: "
)
_AGAIN = (
    "This caption has {} words for {} cues, where {:.0f} to {:.0f} words are expected. Write it again, or list the "
    "cues that are missing. Reply with the same kind of JSON object."
)
_CUES = ("subjects", "attributes", "actions", "background")


class Target(NamedTuple):
    """A segment as it is learned, the texts it was made of, and why its length does not follow its density, if so."""

    segment: SegmentRecord
    texts: list[str]
    flagged: str | None = None


class _UnfitError(ValueError):
    fatal = True  # whatever the video


class Teacher(ABC):
    """Reads and describes the segments of clips. A ValueError that is `fatal` concerns all clips."""

    def __init__(self, options: Namespace) -> None:
        self.options = options

    @abstractmethod
    def frame_spec(self, path: Path, start: float | None, end: float | None, fps: float | None) -> FrameSpec:
        """Which frames of one segment are shown."""

    @abstractmethod
    def describe(self, clips: Sequence[list[Frames]]) -> list[list[str]]:
        """One text per segment of each clip."""

    def read(self, clip: Record, path: Path) -> list[Frames]:
        """The frames of each segment, cut as for training; of the whole clip, where a captioner cuts it."""
        first, given = clip.start or 0.0, self.options
        if given.captioner or clip.image is not None:
            return [read_spec(self.frame_spec(path, clip.start, clip.end, clip.fps))]
        seconds = (probe(path, clip.fps).seconds if clip.end is None else clip.end) - first
        parts = max(1, round(seconds / given.seconds)) if given.seconds else given.segments or SEGMENTS
        spec = self.frame_spec(path, first, first + seconds / parts, clip.fps)
        each = spec.segments * spec.frames_per_segment
        spec = replace(spec, segments=parts, frames_per_segment=each, start=clip.start, end=clip.end)
        frames = read_spec(spec)
        return list(map(Frames, frames.pixels.split(each), frames.seconds.split(each)))


class VideoTeacher(Teacher):
    """A checkpoint that `VideoLM` opens: its replies about each segment, or the captions that its compressor writes."""

    def __init__(self, options: Namespace) -> None:
        super().__init__(options)
        backbone = shared.backbone(options) or None
        self.lm = VideoLM.from_pretrained(options.teacher, backbone=backbone, **shared.place(options))

    def frame_spec(self, path: Path, start: float | None, end: float | None, fps: float | None) -> FrameSpec:
        return self.lm.frame_spec(path, start, end, fps)

    def describe(self, clips: Sequence[list[Frames]]) -> list[list[str]]:
        opened = [[self.lm.open("", decoded=(frames, 0.0)) for frames in clip] for clip in clips]
        if self.options.captioner:
            found = self.lm.compress([(video, None) for (video,) in opened])
            return [self._captions(each.captions, video) for each, (video,) in zip(found, clips, strict=True)]
        asked = [(video, self.options.prompt) for clip in opened for video in clip]
        texts = iter(self.lm.answer(asked, max_new_tokens=self.options.max_new_tokens))
        return [[next(texts).text for _ in clip] for clip in opened]

    def _captions(self, captions: list[str] | None, frames: Frames) -> list[str]:
        count, wanted = len(captions or ()), self.options.segments
        if captions is None or (wanted not in (None, count) and len(frames) > 1):
            raise _UnfitError(
                f"--captioner: the compressor {type(self.lm.compressor).__name__} of {self.options.teacher} writes "
                f"{count} captions of a video; --segments is {wanted}. Leave --segments out, or ask the language model "
                "(without --captioner)."
            )
        return captions


class EndpointTeacher(Teacher):
    """A model behind an endpoint that takes images: each segment is a request with its frames as JPEG files."""

    def __init__(self, options: Namespace) -> None:
        super().__init__(options)
        self.endpoint = _endpoint(options, options.model, options.max_new_tokens)

    def frame_spec(self, path: Path, start: float | None, end: float | None, fps: float | None) -> FrameSpec:
        info = probe(path, fps)
        scale = min(1.0, self.options.pixels / max(info.height, info.width))
        size = (max(1, round(info.height * scale)), max(1, round(info.width * scale)))
        count = 1 if fps is None and is_image(path) else self.options.frames or FRAMES
        return FrameSpec(path, 1, count, start, end, size, fps=fps)

    def describe(self, clips: Sequence[list[Frames]]) -> list[list[str]]:
        return [[self.endpoint.ask(self._messages(frames)) for frames in clip] for clip in clips]

    def _messages(self, frames: Frames) -> list[dict]:
        urls = [jpeg_url(Image.fromarray(image.permute(1, 2, 0).numpy()), 90) for image in frames.pixels]
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return [{"role": "user", "content": [*images, {"type": "text", "text": self.options.prompt}]}]


class TextModel:
    """Makes a description dense, counts its cues, and asks once more where the length does not follow the density."""

    def __init__(self, options: Namespace) -> None:
        self.low, self.high = options.band
        self.endpoint = _endpoint(options, options.text_model, 4 * options.max_new_tokens)

    def target(self, text: str) -> Target:
        """A description as a caption with cues and density; EndpointError if the model gives no usable reply."""
        messages, texts, before = [{"role": "user", "content": REWRITE + _plain(text)}], [text], None
        while True:
            reply, segment = self.endpoint.ask(messages, _segment)
            texts.append(reply)
            words, density = len(segment.caption.split()), segment.density or 0
            low, high = self.low * density, self.high * max(density, 1)
            flagged = None if low <= words <= high else f"{words} words for {density} cues"
            if flagged is None or before is not None:
                return Target(segment, texts, flagged)
            before, again = flagged, _AGAIN.format(words, density, low, high)
            messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": again}]


def plain_target(text: str) -> Target:
    """The teacher's own words as a caption: no cues and no density, as nothing counted them."""
    return Target(SegmentRecord(caption=_plain(text)), [text])


def _plain(text: str) -> str:
    """A text on one line, without a model's reasoning (<think>...</think>)."""
    return " ".join(text.rpartition("</think>")[2].split())


def _endpoint(options: Namespace, model: str, tokens: int) -> Endpoint:
    """A model of the endpoint that the options name; ValueError for a wrong url or setting."""
    given = {"url": options.endpoint, "model": model, **options.endpoint_settings}
    request = {"temperature": 0, "max_tokens": tokens, **given.get("options", {})}
    return Endpoint(check(EndpointConfig, {**given, "options": request}, "--endpoint-settings"))


def _segment(reply: str) -> tuple[str, SegmentRecord]:
    """A text model's reply, and the segment that it describes; Transient if it is none."""
    try:
        said = _plain(reply)
        tree = json.loads(said[said.find("{") : said.rfind("}") + 1])
        found = check(SegmentRecord, {name: tree[name] for name in ("caption", *_CUES)}, "it")
    except (ValueError, KeyError, TypeError, RecursionError):
        shown = f"{reply[:SHOWN_LETTERS]!r}; it must be an object of caption, {', '.join(_CUES)}"
        raise Transient(f"its reply is no caption: {shown}. Take another text model.") from None
    cues = {name: [" ".join(cue.split()) for cue in getattr(found, name) if cue.strip()] for name in _CUES}
    segment = found.model_copy(update={"caption": " ".join(found.caption.split()), **cues})
    return reply, segment.model_copy(update={"density": sum(densities([segment]))})
