"""Ask a model about a video.

from langdc import VideoLM
lm = VideoLM.from_pretrained("runs/sample/langdc/stage3")
video = lm.open("clip.mp4")
print(video.ask("what shape is the red object ?"))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langdc import checkpoint, devices
from langdc.backbones.chat import conversation, question_of
from langdc.backbones.inputs import read_prompt
from langdc.config import MemberConfig, check
from langdc.features import read_spec
from langdc.flops import Counted, encoder_flops, work_flops
from langdc.frameselectors import frameselectors
from langdc.generate import require_finite
from langdc.interfaces import FrameSelector, KVCompressor, LayerCompressor, TokenCompressor
from langdc.kvcompressors import kvcompressors
from langdc.language_models import ids_of
from langdc.layercompressors import layercompressors
from langdc.log import get_logger
from langdc.model import VideoModel, build_training_free
from langdc.prefill import PrefillOutput, check_inside
from langdc.replies import reply
from langdc.timing import StageTimer, note, stage
from langdc.types import Answer, FeatureGrid, Frames, FrameSpec, Prompt, VideoFeatures, VideoTokens
from langdc.video import is_image, probe

logger = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class CompressedVideo:
    """A video's tokens, the captions behind them if there are any, and the seconds and FLOPs that compressing took."""

    tokens: VideoTokens
    captions: list[str] | None
    seconds: float
    flops: float


@dataclass(eq=False)
class OpenVideo:
    """A video that was decoded and encoded once; compressed when first asked about, or per question where needed."""

    lm: "VideoLM"
    frames: Frames | None
    encoder: Mapping[str, FeatureGrid]
    times: Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)  # of choosing frames
    compressed: dict[str | None, CompressedVideo] = field(default_factory=dict)
    projecting: float = 0.0
    """FLOPs of the backbone's projectors, and of the pool before another compressor; all questions share them."""
    whole: int = 0
    """Number of tokens before anything is compressed; known once `features` are."""
    chosen_for: str | None = None
    """The question that its frames were chosen for, if they were."""

    @cached_property
    def features(self) -> VideoFeatures:
        """What the compressor gets, but for the question; ValueError where it lacks the encoder's attention."""
        if self.lm.lacks_saliency(self.encoder):
            raise ValueError(
                f"{type(self.lm.compressor).__name__} needs the encoder's attention, which was not asked for when this "
                "video was opened. Open it again without 'same'."
            )
        needs = self.lm.compressor.needs - {"question"}
        with Counted() as counted:
            found = self.lm.model.backbone.project([self.encoder], [self.times], needs)[0]
            self.whole = _size(found)
            if self.lm.pool is not None and found.projected:
                found = self.lm.pool.pooled(found)
        self.projecting = counted.total
        return found

    @property
    def tokens(self) -> VideoTokens:
        """The tokens that stand for this video; ValueError if they depend on the question."""
        if "question" in self.lm.compressor.needs:
            raise ValueError(
                f"{type(self.lm.compressor).__name__} compresses for a question; take lm.compress([(video, question)])."
            )
        return self.lm.compress([(self, None)])[0].tokens

    @property
    def segments(self) -> int:
        """How many segments the tokens are counted in."""
        return -(-self.features.grid[0] // self.lm.compressor.frames_per_segment)

    def ask(self, question: str, **generation: Any) -> Answer:
        """Answer a question, with what every stage took; options are those of transformers (max_new_tokens, ...).
        ValueError for another question than the one that its frames were chosen for.
        """
        if self.chosen_for not in (None, question):
            raise ValueError(
                f"The frames of this video were chosen for {self.chosen_for!r}; open it again for {question!r}."
            )
        devices.reset_peak(self.lm.device)
        return self.lm.answer([(self, question)], **generation)[0]


class VideoLM:
    """A model, ready to be asked. `compressor` replaces the one it was trained with; if that begins with a pool, it
    chooses among the pool's tokens, which the language model learned to read. `layers` drops tokens between the layers
    of its language model, `kv` drops keys from its cache, `frames` chooses the frames that it reads for a question.
    """

    def __init__(
        self,
        model: VideoModel,
        compressor: TokenCompressor | None = None,
        kv: KVCompressor | None = None,
        layers: LayerCompressor | None = None,
        frames: FrameSelector | None = None,
    ) -> None:
        self.model = model
        self.compressor = compressor if compressor is not None else model.compressor
        replaced = hasattr(model.compressor, "pooled") and not hasattr(self.compressor, "pooled")
        self.pool: Any = model.compressor if replaced else None
        self.kv, self.layers, self.frames = kv, layers, frames
        self._told = False
        self.chooses = frames is not None and not frames.blind  # so that a video is opened for a question
        model.check_serves(self.compressor)
        if kv is not None or layers is not None:
            check_inside(model.backbone.text_model, kv, layers)
        clips = model.backbone.frames_per_segment > model.backbone.frames_per_step
        if self.chooses and (clips or type(self.compressor).text is not TokenCompressor.text):
            what = type(model.backbone if clips else self.compressor).__name__
            raise ValueError(f"{what} reads equal parts of a video; chosen frames may lie in one. Leave out frames.")

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        compressor: TokenCompressor | Mapping[str, Any] | str | None = None,
        kv: KVCompressor | Mapping[str, Any] | str | None = None,
        backbone: Mapping[str, Any] | None = None,
        device: str | torch.device | None = "auto",
        dtype: str | torch.dtype = "auto",
        layers: LayerCompressor | Mapping[str, Any] | str | None = None,
        frames: FrameSelector | Mapping[str, Any] | str | None = None,
    ) -> "VideoLM":
        """Load a checkpoint, ours or a stock model's: a folder or hub id. `compressor`, `layers`, `kv`, `frames`: a
        name, {"name": ..., settings} or object. `backbone`: a stock model's settings: {"frames": 64}, and a "name"
        where several fit.

        `device`: "auto" is the accelerator where there is one; "cpu", "cuda:1", ... `dtype`: "float32", "bfloat16",
        "float16"; "auto" is bfloat16 on an accelerator, and as the checkpoint says on a CPU.
        """
        where, stated = devices.named(device), (backbone or {}).get("dtype", "auto")
        if "auto" not in (dtype, stated) and devices.dtype_named(dtype, where) != devices.dtype_named(stated, where):
            raise ValueError(f"dtype is {dtype}, and {stated} among the backbone's settings. Give one of the two.")
        kept_in = devices.dtype_named(stated if dtype == "auto" else dtype, where)
        devices.select(where)  # kernels and captured graphs run on the device that is selected
        model = checkpoint.open_model(directory, backbone, where, kept_in)
        if isinstance(compressor, str):
            compressor = {"name": compressor}
        if isinstance(compressor, Mapping):
            compressor = build_training_free(check(MemberConfig, dict(compressor), "compressor"), model.backbone)
        inside = None if layers is None else layercompressors.of(layers)
        chooser = None if frames is None else frameselectors.of(frames)
        return cls(model, compressor, None if kv is None else kvcompressors.of(kv), inside, chooser).to(where)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    def to(self, device: str | torch.device) -> "VideoLM":
        """Move the model (and the compressor) to a device."""
        self.model.to(device)
        self.compressor.to(device)
        return self

    # ---- from a file to tokens

    def frame_spec(
        self, path: str | Path, start: float | None = None, end: float | None = None, fps: float | None = None
    ) -> FrameSpec:
        """Which frames this model reads of a file, or of a folder of frames with `fps` of them a second."""
        return self.model.backbone.frame_spec(path, start, end, fps)

    def _chosen(self, spec: FrameSpec, question: str) -> FrameSpec:
        """At most as many frames as a spec has, those that the selector chooses; the same spec if there are no more."""
        assert self.frames is not None
        info, budget = probe(spec.path, spec.fps), spec.segments * spec.frames_per_segment
        seconds = (info.seconds if spec.end is None else spec.end) - (spec.start or 0.0)
        count = min(self.frames.most, round(seconds * min(self.frames.fps, info.fps)))
        if count <= budget:
            if round(seconds * info.fps) > budget and not self._told:
                self._told = True
                logger.warning(
                    "%s looks at %d frames of %s (fps=%s, most=%s), and %d are read: nothing is left to choose, and "
                    "evenly spaced ones are read, here and wherever that is so. Raise fps or most for a choice.",
                    *(type(self.frames).__name__, count, spec.path, self.frames.fps, self.frames.most, budget),
                )
            return spec
        smaller = self.frames.side / min(info.height, info.width)
        size = round(info.height * smaller), round(info.width * smaller)
        low = read_spec(replace(spec, segments=1, frames_per_segment=count, size=size, resample="bicubic"))
        places = self.frames.select(Frames(low.pixels.to(self.device), low.seconds), question, budget).tolist()
        if not 1 <= len(places) <= budget or sorted({*places} & {*range(count)}) != places:
            what = f"{type(self.frames).__name__} chose the frames {places} of {count}"
            raise ValueError(f"{what}; it must choose 1 to {budget} of them, in ascending order and each once.")
        return replace(spec, segments=1, frames_per_segment=len(places), times=tuple(low.seconds[places].tolist()))

    def open(
        self,
        path: str | Path,
        start: float | None = None,
        end: float | None = None,
        same: OpenVideo | None = None,
        fps: float | None = None,
        need: frozenset[str] = frozenset(),
        decoded: tuple[Frames, float] | None = None,
        question: str | None = None,
    ) -> OpenVideo:
        """Decode and encode a video or image once; `same` takes over another model's outputs of identical encoders.

        A folder of images counts as a video of `fps` frames per second. Where `same` has no encoder attention and the
        compressor needs it, the frames are encoded again. `need`: what other compressors need that will take it over.
        `decoded`: its frames, where they were decoded before, and the seconds that took. `question`: what its frames
        are chosen for, if they are. Raises ValueError if the file cannot be read.
        """
        if same is not None:
            chosen = {"flops": same.flops, "chosen_for": same.chosen_for}
            if same.frames is not None and self.lacks_saliency(same.encoder):
                before = {name: same.seconds[name] for name in ("select", "decode") if name in same.seconds}
                return replace(self._encoded(same.frames, before, need), **chosen)
            # without what this compressor does not use, nor its seconds
            encoded, seconds = same.encoder, dict(same.seconds)
            if "saliency" not in self.compressor.needs:
                encoded = {name: replace(grid, saliency=None) for name, grid in encoded.items()}
                seconds.pop("saliency", None)
            return OpenVideo(self, same.frames, encoded, same.times, seconds, **chosen)
        if decoded is not None:
            note("decode", decoded[1])
            return self._encoded(decoded[0], {"decode": decoded[1]}, need)
        flops, chosen_for = dict[str, float](), None
        with StageTimer(self.device) as timer, stage("decode"):
            spec = self.frame_spec(path, start, end, fps)
            if self.chooses and not is_image(path):
                if question is None:
                    raise ValueError("This model chooses frames for a question; give it: open(path, question=...).")
                if not question.strip():
                    raise ValueError("The question is empty; ask something.")
                with stage("select"), Counted() as counted, torch.no_grad():
                    spec = self._chosen(spec, question)
                flops["select"], chosen_for = counted.total, question
            frames = read_spec(spec)
        return replace(self._encoded(frames, timer.seconds, need), flops=flops, chosen_for=chosen_for)

    @torch.no_grad()
    def _encoded(self, frames: Frames, seconds: dict[str, float], need: frozenset[str]) -> OpenVideo:
        with StageTimer(self.device) as timer, stage("encode"):
            encoded = self.model.backbone.encode([frames], self.compressor.needs | need)[0]
        require_finite(encoded)
        return OpenVideo(self, frames, encoded, frames.seconds, {**seconds, **timer.seconds})

    def lacks_saliency(self, encoded: Mapping[str, FeatureGrid]) -> bool:
        """Whether these grids have no encoder attention although the compressor needs it."""
        wanted = self.model.backbone.has_saliency and "saliency" in self.compressor.needs
        return wanted and any(grid.saliency is None and grid.size is None for grid in encoded.values())

    @torch.no_grad()
    def compress(self, batch: Sequence[tuple[OpenVideo, str | None]]) -> list[CompressedVideo]:
        """Compress videos, each for its question where the compressor needs one; all that is not known in one batch."""
        guided = "question" in self.compressor.needs
        keys = [(video, question if guided else None) for video, question in batch]
        waiting = list({(id(v), q): (v, q) for v, q in keys if q not in v.compressed}.values())
        if waiting:
            with StageTimer(self.device) as timer, stage("compress"):
                features = [video.features for video, _ in waiting]
                if guided:
                    ids = [ids_of(self.model.backbone.tokenizer, (question or "").strip()) for _, question in waiting]
                    features = self.model.with_questions(features, ids)
                with Counted() as counted:
                    found = self.model.compress(features, compressor=self.compressor)
            for number, (video, question) in enumerate(waiting):
                share = _size(features[number]) / sum(map(_size, features))
                flops = video.projecting + counted.total * share
                flops += work_flops(found.work[number]) if found.work else 0.0
                said = None if found.ids is None else [self.compressor.text(ids) for ids in found.ids[number]]
                seconds = timer.seconds["compress"] / len(waiting)
                video.compressed[question] = CompressedVideo(found.tokens[number], said, seconds, flops)
        return [video.compressed[question] for video, question in keys]

    # ---- from a question to an answer

    def prompt(self, question: str, video: OpenVideo | None = None) -> Prompt:
        """The prompt of a question about a video, or about nothing, up to where the reply begins."""
        if not question.strip():
            raise ValueError("The question is empty; ask something.")
        return self._prompt(conversation(question, videos=int(video is not None)), [] if video is None else [video])

    def _prompt(self, messages: list[dict], videos: Sequence[OpenVideo]) -> Prompt:
        media = [video.features for video in videos]
        return self.model.backbone.prompt(messages, media=media, segment_steps=self.compressor.frames_per_segment)

    def ask(self, path: str | Path | None, question: str, **generation: Any) -> Answer:
        """Answer a question about a file; None asks the language model alone, without a video."""
        if path is None:
            return self._reply([self.prompt(question)], [[]], [[]], **generation)[0]
        return self.open(path, question=question).ask(question, **generation)

    def converse(self, messages: list[dict], videos: Sequence[OpenVideo], **generation: Any) -> Answer:
        """Reply to chat messages about any number of videos and images, in the order of their {"type": "video"} parts.

        What compressing cost is not in the answer.
        """
        prompt, question = self._prompt(messages, videos), question_of(messages)
        tokens = [found.tokens for found in self.compress([(video, question) for video in videos])]
        return self._reply([prompt], [list(videos)], [tokens], **generation)[0]

    def answer(self, batch: Sequence[tuple[OpenVideo, str]], **generation: Any) -> list[Answer]:
        """Answer several questions at once. All videos are compressed in one batch, and what prompts about a video
        begin with is read once. Seconds are shares of the batch's; FLOPs are those of asking alone.
        """
        compressed = self.compress(batch)  # before the clock starts; a prompt may ask for the features
        with StageTimer(self.device) as timer, stage("preprocess"):
            prompts = [self.prompt(question, video) for video, question in batch]
        share = timer.seconds["preprocess"] / max(len(batch), 1)
        videos, tokens = [[video] for video, _ in batch], [[found.tokens] for found in compressed]
        replies = self._reply(prompts, videos, tokens, **generation)
        answers = []
        for answered, (video, _), found in zip(replies, batch, compressed, strict=True):
            # what came before the language model, the making of its prompt included
            before = {**video.seconds, "preprocess": video.seconds.get("preprocess", 0.0) + share}
            encoding = encoder_flops(self.model.backbone, video.encoder)
            answer = replace(
                answered,
                tokens=len(found.tokens),
                tokens_before=video.whole,
                segment_tokens=found.tokens.per_segment(video.segments),
                seconds={**before, "compress": found.seconds, **answered.seconds},
                flops={**video.flops, "encode": encoding, "compress": found.flops, **answered.flops},
                captions=found.captions,
            )
            answers.append(answer)
        return answers

    def _reply(
        self,
        prompts: list[Prompt],
        videos: list[list[OpenVideo]],
        tokens: list[list[VideoTokens]],
        **generation: Any,
    ) -> list[Answer]:
        options = {"max_new_tokens": 64, "do_sample": False, **generation}
        frames = [[len(video.times) for video in shown] for shown in videos]
        return reply(self.model.backbone, prompts, tokens, frames, self.kv, options, self.layers)

    @torch.no_grad()
    def read(self, prompt: Prompt, videos: list[OpenVideo]) -> PrefillOutput:
        """Read a prompt about videos, in chunks if keys are dropped."""
        tokens, frames = [video.tokens for video in videos], [len(video.times) for video in videos]
        return read_prompt(self.model.backbone, prompt, tokens, self.kv, frames, layers=self.layers)


def _size(video: VideoFeatures) -> int:
    """How many tokens there are before compression."""
    return sum(grid.tokens for grid in video.projected or video.encoder.values())
