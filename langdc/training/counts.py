"""What the batches of loss modules are made of, in numbers: samples, tokens, soft tokens and segments."""

from collections.abc import Sequence

from torch import Tensor

from langdc.compressors.langdc import LangDC
from langdc.types import Spliced, VideoFeatures


def caption_reads(compressor: LangDC, frames: int, lengths: Sequence[int]) -> int:
    """How many tokens the captioner reads of a video of so many encoder frames and caption tokens per segment."""
    prompt = len(compressor.captioner.before) + len(compressor.captioner.after)
    return frames * sum(side**2 for side in compressor.pool.values()) + len(lengths) * prompt + sum(lengths)


def caption_counts(
    compressor: LangDC, videos: Sequence[VideoFeatures], captions: Sequence[Sequence[Tensor]]
) -> dict[str, int]:
    """Of a batch that the captioner reads."""
    lengths = [[len(caption) for caption in of_video] for of_video in captions]
    frames = [len(next(iter(video.encoder.values())).values) for video in videos]
    return {
        "samples": len(videos),
        "tokens": sum(caption_reads(compressor, *each) for each in zip(frames, lengths, strict=True)),
        "soft_tokens": sum(map(sum, lengths)),
        "segments": sum(map(len, lengths)),
    }


def answer_counts(spliced: Sequence[Spliced], states: Sequence[Sequence[Tensor]] | None) -> dict[str, int]:
    """Of a batch that the language model reads, given the caption states in it, if it has any."""
    soft = [len(part) for of_video in states or () for part in of_video]
    tokens = sum(len(item.embeds) for item in spliced)
    return {"samples": len(spliced), "tokens": tokens, "soft_tokens": sum(soft), "segments": len(soft)}
