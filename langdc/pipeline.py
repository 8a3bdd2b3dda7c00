"""Ask a model about a video.

from langdc import VideoLM
lm = VideoLM.from_pretrained("runs/sample/langdc/stage3")
video = lm.open("clip.mp4")
print(video.ask("what shape is the red object ?"))
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from langdc import checkpoint
from langdc.compressors.langdc import LangDC
from langdc.config import MemberConfig, check
from langdc.features import Clip
from langdc.flops import answer_flops, compress_flops
from langdc.hosts.batch import read_together
from langdc.hosts.chat import conversation
from langdc.interfaces import TokenCompressor
from langdc.metering import synchronize
from langdc.model import VideoModel, build_compressor
from langdc.types import Answer, FeatureGrid, Frames, Prompt, VideoFeatures, VideoTokens
from langdc.video import IMAGE_SUFFIXES


class FirstToken(BaseStreamer):
    """Notes when generation delivers its first new token."""

    def __init__(self) -> None:
        self.at: float | None = None
        self._calls = 0

    def put(self, value: Tensor) -> None:
        self._calls += 1
        if self._calls == 2:  # the first call hands over the prompt
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


@dataclass(eq=False)
class OpenVideo:
    """A video that was decoded and encoded once, ready for any number of questions."""

    lm: "VideoLM"
    frames: Frames | None
    raw: Mapping[str, FeatureGrid]
    times: Tensor
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def features(self) -> VideoFeatures:
        """What the compressor gets."""
        return self.lm.model.host.features([self.raw], [self.times], self.lm.compressor.needs)[0]

    @cached_property
    def compressed(self) -> tuple[VideoTokens, list[str] | None, float]:
        """The tokens, the captions behind them if there are any, and the seconds it took."""
        return self.lm.compress([self])[0]

    @property
    def tokens(self) -> VideoTokens:
        """The tokens that stand for this video."""
        return self.compressed[0]

    @property
    def segments(self) -> int:
        """How many segments the video was sampled in."""
        return -(-len(self.times) // self.lm.model.host.frames_per_segment)

    def ask(self, question: str, **generation: Any) -> Answer:
        """Answer a question; generation options are those of transformers (max_new_tokens, do_sample, ...)."""
        return self.lm.ask_one(self, question, **generation)


class VideoLM:
    """A trained model, ready to be asked. `compressor` replaces the one it was trained with."""

    def __init__(self, model: VideoModel, compressor: TokenCompressor | None = None) -> None:
        self.model = model
        self.compressor = compressor if compressor is not None else model.compressor

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, compressor: TokenCompressor | Mapping[str, Any] | str | None = None
    ) -> "VideoLM":
        """Load a checkpoint directory; `compressor` may be a name, {"name": ..., settings} or an object."""
        model = checkpoint.load(directory)
        if isinstance(compressor, str):
            compressor = {"name": compressor}
        if isinstance(compressor, Mapping):
            compressor = build_compressor(check(MemberConfig, dict(compressor), "compressor"), model.host)
        return cls(model, compressor)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    def to(self, device: str | torch.device) -> "VideoLM":
        """Move the model (and the compressor) to a device."""
        self.model.to(device)
        self.compressor.to(device)
        return self

    def clip(self, path: str | Path, start: float | None = None, end: float | None = None) -> Clip:
        """The frames this model samples of a file."""
        host, path = self.model.host, Path(path)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return Clip(path, 1, 1)
        return Clip(path, host.segments, host.frames_per_segment, start, end)

    def open(
        self,
        path: str | Path,
        start: float | None = None,
        end: float | None = None,
        same: OpenVideo | None = None,
    ) -> OpenVideo:
        """Decode and encode a video or image once; `same` takes over another model's outputs of identical encoders.

        Raises ValueError if the file cannot be read.
        """
        if same is not None:
            return OpenVideo(self, same.frames, same.raw, same.times, dict(same.seconds))
        started = time.perf_counter()
        frames = self.clip(path, start, end).read()
        decoded = time.perf_counter()
        raw = self.model.host.see([frames])[0]
        synchronize(self.device)
        seconds = {"decode": decoded - started, "encode": time.perf_counter() - decoded}
        return OpenVideo(self, frames, raw, frames.seconds, seconds)

    @torch.no_grad()
    def compress(self, videos: Sequence[OpenVideo]) -> list[tuple[VideoTokens, list[str] | None, float]]:
        """Compress videos in one batch: tokens, captions and each one's share of the seconds."""
        started = time.perf_counter()
        features = [video.features for video in videos]
        captions: list[list[str] | None] = [None] * len(videos)
        if isinstance(self.compressor, LangDC):
            found = self.compressor.caption(features)
            tokens = self.compressor.project(features, found.states)
            captions = [[self.compressor.captioner.decode(ids) for ids in of_video] for of_video in found.ids]
        else:
            tokens = self.compressor.batch(features)
        synchronize(self.device)
        share = (time.perf_counter() - started) / max(len(videos), 1)
        return [(token, said, share) for token, said in zip(tokens, captions, strict=True)]

    def tokens(self, video: OpenVideo) -> VideoTokens:
        """The tokens that stand for a video."""
        return video.tokens

    def prompt(self, question: str, video: bool = True) -> Prompt:
        """The prompt of a question, up to where the reply begins."""
        if not question.strip():
            raise ValueError("The question is empty; ask something.")
        return self.model.host.prompt(conversation(question, video=video))

    def ask(self, path: str | Path | None, question: str, **generation: Any) -> Answer:
        """Answer a question about a file; None asks the language model alone, without a video."""
        if path is None:
            return self._reply([self.prompt(question, video=False)], [[]], None, **generation)[0]
        return self.open(path).ask(question, **generation)

    def ask_one(self, video: OpenVideo, question: str, **generation: Any) -> Answer:
        """Answer one question about an open video, with the seconds of every stage."""
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
        prompts = [self.prompt(question) for _, question in batch]
        replies = self._reply(prompts, [[video.tokens] for video, _ in batch], clock, **generation)
        return [self._with_costs(reply, video) for reply, (video, _) in zip(replies, batch, strict=True)]

    def _with_costs(self, reply: Answer, video: OpenVideo) -> Answer:
        tokens, captions, compress = video.compressed
        flops = {
            "encode": self.model.host.encoder_flops(len(video.times)),
            "compress": compress_flops(self.model, self.compressor, len(video.times), captions),
        }
        return Answer(
            text=reply.text,
            tokens=len(tokens),
            segment_tokens=tokens.per_segment(video.segments),
            seconds={**video.seconds, "compress": compress, **reply.seconds},
            flops={**flops, **reply.flops},
            peak_bytes=reply.peak_bytes,
            captions=captions,
        )

    @torch.no_grad()
    def _reply(
        self, prompts: list[Prompt], tokens: list[list[VideoTokens]], clock: FirstToken | None, **generation: Any
    ) -> list[Answer]:
        host = self.model.host
        generate: Any = host.language_model.generate
        started = time.perf_counter()
        batch = read_together(host, prompts, tokens)
        options = {"max_new_tokens": 64, "do_sample": False, **generation}
        ids = generate(
            **batch,
            streamer=clock,
            eos_token_id=host.end_ids,
            pad_token_id=host.tokenizer.pad_token_id,
            **options,
        )
        synchronize(self.device)
        finished = time.perf_counter()
        first = clock.at if clock is not None and clock.at is not None else finished
        share = 1 / len(prompts)
        seconds = {"prefill": (first - started) * share, "generate": (finished - first) * share}
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        texts = host.tokenizer.batch_decode(ids, skip_special_tokens=True)
        lengths = batch["attention_mask"].sum(1).tolist()
        written = [int((~torch.isin(row, torch.tensor(host.end_ids, device=row.device))).sum()) for row in ids]
        return [
            Answer(text.strip(), 0, [], dict(seconds), answer_flops(host, length, new), peak)
            for text, length, new in zip(texts, lengths, written, strict=True)
        ]
