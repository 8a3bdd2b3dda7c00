"""Ask a model about a video.

from langdc import VideoLM
lm = VideoLM.from_pretrained("runs/sample/langdc/stage3")
video = lm.open("clip.mp4")
print(video.ask("what shape is the red object ?"))
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langdc import checkpoint, devices
from langdc.backbones.chat import conversation
from langdc.backbones.inputs import read_prompt, read_together
from langdc.compressors.langdc import LangDC
from langdc.config import MemberConfig, check
from langdc.continuation import Continuation
from langdc.features import FrameSpec
from langdc.flops import answer_flops, compress_flops, reading_flops
from langdc.generation import FirstToken, ScoreWatch, refuse_nan
from langdc.interfaces import KVCompressor, TokenCompressor
from langdc.kvcompressors import kvcompressors
from langdc.metering import synchronize
from langdc.model import VideoModel, build_compressor
from langdc.prefill import Reading
from langdc.timing import StageTimer, note, stage
from langdc.types import Answer, FeatureGrid, Frames, Prompt, VideoFeatures, VideoTokens
from langdc.video import is_image


@dataclass(eq=False)
class OpenVideo:
    """A video that was decoded and encoded once, ready for any number of questions."""

    lm: "VideoLM"
    frames: Frames | None
    encoder: Mapping[str, FeatureGrid]
    times: Tensor
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def features(self) -> VideoFeatures:
        """What the compressor gets.

        Raises ValueError if it needs to know what the encoder attends to and the video was opened without.
        """
        if self.lm.lacks_saliency(self.encoder):
            raise ValueError(
                f"{type(self.lm.compressor).__name__} chooses by what the encoder attends to, which was not asked for "
                "when this video was opened. Open it again without 'same'."
            )
        return self.lm.model.backbone.project([self.encoder], [self.times], self.lm.compressor.needs)[0]

    @cached_property
    def compressed(self) -> tuple[VideoTokens, list[str] | None, float, float]:
        """The tokens, the captions behind them if there are any, and the seconds and FLOPs it took."""
        return self.lm.compress([self])[0]

    @cached_property
    def encoder_flops(self) -> float:
        """What the encoders took for it."""
        return self.lm.model.backbone.encoder_flops(self.encoder)

    @property
    def tokens(self) -> VideoTokens:
        """The tokens that stand for this video."""
        return self.compressed[0]

    @cached_property
    def segment_tokens(self) -> list[int]:
        """How many of them each segment got."""
        return self.tokens.per_segment(self.segments)

    @property
    def segments(self) -> int:
        """How many segments the video was sampled in."""
        return -(-len(self.times) // self.lm.model.backbone.frames_per_segment)

    def ask(self, question: str, **generation: Any) -> Answer:
        """Answer a question; generation options are those of transformers (max_new_tokens, do_sample, ...)."""
        return self.lm.ask_one(self, question, **generation)


class VideoLM:
    """A model, ready to be asked: `compressor` replaces the one it was trained with, `kv` thins out its cache."""

    def __init__(
        self, model: VideoModel, compressor: TokenCompressor | None = None, kv: KVCompressor | None = None
    ) -> None:
        self.model = model
        self.compressor = compressor if compressor is not None else model.compressor
        self.kv = kv
        model.check_serves(self.compressor)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        compressor: TokenCompressor | Mapping[str, Any] | str | None = None,
        kv: KVCompressor | Mapping[str, Any] | str | None = None,
        backbone: Mapping[str, Any] | None = None,
    ) -> "VideoLM":
        """Load a checkpoint directory, ours or a stock vision-language model's.

        `compressor` and `kv` may be a name, {"name": ..., settings} or an object. `backbone`: settings of a stock
        model, such as {"frames": 64}, with a name where the directory serves several backbones: {"name": "llava_video"}.
        """
        model = checkpoint.open_model(directory, backbone)
        if isinstance(compressor, str):
            compressor = {"name": compressor}
        if isinstance(compressor, Mapping):
            compressor = build_compressor(check(MemberConfig, dict(compressor), "compressor"), model.backbone)
            if any(True for _ in compressor.parameters()):
                raise ValueError(
                    f"The compressor {type(compressor).__name__} has weights of its own, which {directory} does not "
                    "hold: they would be random. Give the checkpoint that it was trained in, without a compressor."
                )
        if isinstance(kv, str):
            kv = {"name": kv}
        return cls(model, compressor, kvcompressors.build(**kv) if isinstance(kv, Mapping) else kv)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    def to(self, device: str | torch.device) -> "VideoLM":
        """Move the model (and the compressor) to a device."""
        self.model.to(device)
        self.compressor.to(device)
        return self

    def clip(
        self, path: str | Path, start: float | None = None, end: float | None = None, fps: float | None = None
    ) -> FrameSpec:
        """The frames this model samples of a file, or of a folder of frames with `fps` of them a second."""
        if is_image(path) and fps is None:
            return FrameSpec(Path(path), 1, 1)
        how = self.model.backbone.sampling(path, start, end, fps)
        return FrameSpec(Path(path), how.segments, how.frames_per_segment, start, end, how.size, how.resample, fps)

    def open(
        self,
        path: str | Path,
        start: float | None = None,
        end: float | None = None,
        same: OpenVideo | None = None,
        fps: float | None = None,
        need: frozenset[str] = frozenset(),
    ) -> OpenVideo:
        """Decode and encode a video or image once; `same` takes over another model's outputs of identical encoders.

        A folder of images counts as a video of `fps` frames per second.
        Where those do not say what the encoder attends to and the compressor needs it, the frames are encoded again.
        `need`: what other compressors need that will take it over. Raises ValueError if the file cannot be read.
        """
        if same is not None:
            if same.frames is not None and self.lacks_saliency(same.encoder):
                return self._encoded(same.frames, {"decode": same.seconds.get("decode", 0.0)}, need)
            return self._as_needed(same)
        with StageTimer(self.device) as timer, stage("decode"):
            frames = self.clip(path, start, end, fps).read()
        return self._encoded(frames, timer.seconds, need)

    def _encoded(self, frames: Frames, seconds: dict[str, float], need: frozenset[str]) -> OpenVideo:
        with StageTimer(self.device) as timer, stage("encode"):
            encoded = self.model.backbone.encode([frames], self.compressor.needs | need)[0]
        refuse_nan(encoded)
        return OpenVideo(self, frames, encoded, frames.seconds, {**seconds, **timer.seconds})

    def _as_needed(self, same: OpenVideo) -> OpenVideo:
        """A video that another model opened, without what this compressor has no use for, nor its seconds."""
        encoded, seconds = same.encoder, dict(same.seconds)
        if "saliency" not in self.compressor.needs:
            encoded = {name: replace(grid, saliency=None) for name, grid in encoded.items()}
            seconds.pop("saliency", None)
        return OpenVideo(self, same.frames, encoded, same.times, seconds)

    def lacks_saliency(self, encoded: Mapping[str, FeatureGrid]) -> bool:
        """Whether the compressor chooses by what the encoder attends to, and these grids of a video do not say."""
        wanted = self.model.backbone.has_saliency and "saliency" in self.compressor.needs
        return wanted and any(grid.saliency is None and len(grid.values) > 1 for grid in encoded.values())

    @torch.no_grad()
    def compress(self, videos: Sequence[OpenVideo]) -> list[tuple[VideoTokens, list[str] | None, float, float]]:
        """Compress videos in one batch: tokens, captions, each one's share of the seconds, and its FLOPs if alone."""
        with StageTimer(self.device) as timer, stage("compress"):
            features = [video.features for video in videos]
            captions: list[list[str] | None] = [None] * len(videos)
            written: list[list[int]] = [[]] * len(videos)
            if isinstance(self.compressor, LangDC):
                found = self.compressor.caption(features)
                tokens = self.compressor.project(features, found.states)
                captions = [[self.compressor.captioner.decode(ids) for ids in of_video] for of_video in found.ids]
                written = [list(map(len, of_video)) for of_video in found.ids]
            else:
                tokens = self.compressor.batch(features)
            tokens = [
                self.model.backbone.append_newline_tokens(t, video) for t, video in zip(tokens, features, strict=True)
            ]
        share = timer.seconds["compress"] / max(len(videos), 1)
        flops = [
            compress_flops(self.model.backbone, self.compressor, video, lengths)
            for video, lengths in zip(features, written, strict=True)
        ]
        return [(token, said, share, count) for token, said, count in zip(tokens, captions, flops, strict=True)]

    def tokens(self, video: OpenVideo) -> VideoTokens:
        """The tokens that stand for a video."""
        return video.tokens

    def prompt(self, question: str, video: OpenVideo | None = None) -> Prompt:
        """The prompt of a question about a video, or about nothing, up to where the reply begins."""
        if not question.strip():
            raise ValueError("The question is empty; ask something.")
        media = [] if video is None else [video.features]
        return self.model.backbone.prompt(conversation(question, video=video is not None), media=media)

    def ask(self, path: str | Path | None, question: str, **generation: Any) -> Answer:
        """Answer a question about a file; None asks the language model alone, without a video."""
        if path is None:
            return self._reply([self.prompt(question)], [[]], None, **generation)[0]
        return self.open(path).ask(question, **generation)

    def converse(self, messages: list[dict], videos: Sequence[OpenVideo], **generation: Any) -> Answer:
        """Reply to chat messages about any number of videos and images, in the order of their {"type": "video"} parts.

        What compressing cost is not in the answer.
        """
        prompt = self.model.backbone.prompt(messages, media=[video.features for video in videos])
        return self._reply([prompt], [list(videos)], None, **generation)[0]

    def ask_one(self, video: OpenVideo, question: str, **generation: Any) -> Answer:
        """Answer one question about an open video, with the seconds of every stage and the memory it took at most."""
        devices.reset_peak(self.device)
        return self._answers([(video, question)], FirstToken(), **generation)[0]

    def answer(self, batch: Sequence[tuple[OpenVideo, str]], **generation: Any) -> list[Answer]:
        """Answer several questions at once; each video is compressed once, all in one batch.

        What prompts about one video begin with is read once, too. The seconds are each answer's share of the batch's;
        the FLOPs are those of asking it alone.
        """
        waiting = list({id(v): v for v, _ in batch if "compressed" not in v.__dict__}.values())
        for video, found in zip(waiting, self.compress(waiting) if waiting else [], strict=True):
            video.__dict__["compressed"] = found
        return self._answers(batch, None, **generation)

    def _answers(
        self, batch: Sequence[tuple[OpenVideo, str]], clock: FirstToken | None, **generation: Any
    ) -> list[Answer]:
        for video, _ in batch:
            video.tokens  # noqa: B018 - compressed before the clock starts; a prompt may ask for the features
        with StageTimer(self.device) as timer, stage("preprocess"):
            prompts = [self.prompt(question, video) for video, question in batch]
        share = timer.seconds["preprocess"] / max(len(batch), 1)
        replies = self._reply(prompts, [[video] for video, _ in batch], clock, **generation)
        return [self._with_costs(reply, video, share) for reply, (video, _) in zip(replies, batch, strict=True)]

    def _with_costs(self, reply: Answer, video: OpenVideo, worded: float) -> Answer:
        """An answer with what came before it. `worded`: seconds to make its prompt."""
        tokens, captions, compress, compressing = video.compressed
        before = {**video.seconds, "preprocess": video.seconds.get("preprocess", 0.0) + worded}
        flops = {"encode": video.encoder_flops, "compress": compressing}
        return replace(
            reply,
            tokens=len(tokens),
            tokens_before=sum(grid.tokens for grid in video.features.projected or video.encoder.values()),
            segment_tokens=video.segment_tokens,
            seconds={**before, "compress": compress, **reply.seconds},
            flops={**flops, **reply.flops},
            captions=captions,
        )

    @torch.no_grad()
    def _reply(
        self, prompts: list[Prompt], videos: list[list[OpenVideo]], clock: FirstToken | None, **generation: Any
    ) -> list[Answer]:
        watch = ScoreWatch()
        options = {"max_new_tokens": 64, "do_sample": False, **generation}
        options["logits_processor"] = watch.beside(options.get("logits_processor"))
        if "stop_strings" in options:
            options["tokenizer"] = self.model.backbone.tokenizer
        if self.kv is not None or not self.model.backbone.batched:
            replies = [self._reply_alone(p, v, options) for p, v in zip(prompts, videos, strict=True)]
        else:
            replies = self._reply_together(prompts, [[v.tokens for v in of] for of in videos], clock, options)
        watch.refuse_nan(video.tokens for of in videos for video in of)
        return replies

    @torch.no_grad()
    def read(self, prompt: Prompt, videos: list[OpenVideo]) -> Reading:
        """Read a prompt about videos, in chunks if keys are dropped."""
        backbone, frames = self.model.backbone, [len(video.times) for video in videos]
        steps = [-(-number // backbone.frames_per_step) for number in frames]
        return read_prompt(backbone, prompt, [video.tokens for video in videos], self.kv, frames, steps)

    def _reply_alone(self, prompt: Prompt, videos: list[OpenVideo], options: dict[str, Any]) -> Answer:
        """Read one prompt and write the reply."""
        backbone = self.model.backbone
        for video in videos:
            video.tokens  # noqa: B018 - compressed before the clock starts
        with StageTimer(self.device) as timer:
            with stage("prefill"):
                reading = self.read(prompt, videos)
            held, held_bytes = reading.keys_per_layer, reading.cache.held_bytes
            with stage("generate"):
                ids = Continuation(reading, backbone.generation_config).write(
                    eos_token_id=backbone.end_ids, pad_token_id=backbone.tokenizer.pad_token_id, **options
                )
                said = self._text(ids[0])
        flops = reading_flops(backbone, reading.calls, sum(held) / len(held), len(ids[0]) - 1, reading.scoring)
        return Answer(
            said,
            0,
            [],
            timer.seconds,
            flops,
            self._peak(),
            keys_per_layer=held if self.kv is not None else None,
            kv_bytes=held_bytes,
            kv_text_bytes=len(prompt.ids) * self.model.backbone.key_bytes,
            reply_tokens=len(ids[0]),
        )

    def _text(self, ids: Tensor) -> str:
        return str(self.model.backbone.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _peak(self) -> int | None:
        return devices.peak_bytes(self.device)

    def _written(
        self,
        prompts: list[Prompt],
        tokens: list[list[VideoTokens]],
        clock: FirstToken | None,
        options: dict[str, Any],
    ) -> tuple[Tensor, list[int]]:
        """The ids of the replies, filled up to the longest, and the lengths of what was read.

        On its own, so that what it held is given back before the clock stops.
        """
        backbone = self.model.backbone
        generate: Any = backbone.language_model.generate
        batch = read_together(backbone, prompts, tokens)
        ids = generate(
            **batch,
            **({"streamer": clock} if clock is not None and "streamer" not in options else {}),
            eos_token_id=backbone.end_ids,
            pad_token_id=backbone.tokenizer.pad_token_id,
            **options,
        )
        return ids, batch["attention_mask"].sum(1).tolist()

    def _reply_together(
        self,
        prompts: list[Prompt],
        tokens: list[list[VideoTokens]],
        clock: FirstToken | None,
        options: dict[str, Any],
    ) -> list[Answer]:
        """Read and answer several prompts in one padded batch."""
        backbone = self.model.backbone
        started = time.perf_counter()
        ids, lengths = self._written(prompts, tokens, clock, options)
        synchronize(self.device)
        said = [self._text(row) for row in ids]
        finished = time.perf_counter()
        first = clock.at if clock is not None and clock.at is not None else finished
        spent = {"prefill": first - started, "generate": finished - first}
        for name, taken in spent.items():
            note(name, taken)
        seconds = {name: taken / len(prompts) for name, taken in spent.items()}
        each = backbone.key_bytes
        ends = torch.tensor(backbone.end_ids, device=ids.device)
        ended = torch.isin(ids, ends)
        # replies that end early are filled up
        written = torch.where(ended.any(1), ended.int().argmax(1) + 1, ids.shape[1]).tolist()
        return [
            Answer(
                text,
                0,
                [],
                dict(seconds),
                answer_flops(backbone, length, new - 1),
                self._peak(),
                kv_bytes=length * each,
                kv_text_bytes=len(prompt.ids) * each,
                reply_tokens=new,
            )
            for text, length, new, prompt in zip(said, lengths, written, prompts, strict=True)
        ]
