"""Answers of LangDC-3B beside average pools on the same backbone, and VideoGPT+ with Phi-3-mini: random weights.

The decoding of files is left out. Milliseconds are of a batch of videos. A floor is the operations over the ceiling of
products, and the weights that each written token reads over the ceiling of copies.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks import captions
from benchmarks.gpu.measure import Place, Row, costs, weight_bytes
from langdc import checkpoint, devices
from langdc.config import MemberConfig, check
from langdc.flops import Counted, encoder_flops, language_model_flops, work_flops
from langdc.interfaces import TokenCompressor
from langdc.kvcache import token_bytes
from langdc.model import VideoModel, build_compressor
from langdc.pipeline import OpenVideo, VideoLM
from langdc.types import Frames, VideoBatch

VIDEOS, REPLY = (1, 8), 32
MOST_TINY = 4
"""Tokens of a caption and of a reply with tiny sizes."""
VIDEOGPT_PLUS = "videogpt_plus"
DUAL = {"name": "pool", "sides": [6, 4]}


def rows(place: Place) -> Iterator[Row]:
    """Captions of 59 tokens, the pools and VideoGPT+ first; then other lengths, the dual form, profiles."""
    model = _langdc(place)
    sizes = {
        name: build_compressor(check(MemberConfig, {"name": "pool", "sides": sides}, name), model.backbone)
        for name, sides in captions.POOLS.items()
    }
    cases = [("langdc, 59", model, _writing(place, model.compressor, 59))]
    cases += [(name, model, member) for name, member in sizes.items()]
    for case in cases:
        yield from _case(place, *case)
    if not place.tiny:
        other = _cast(place, captions.full_size(place.device, place.dtype, VIDEOGPT_PLUS))
        yield from _case(place, VIDEOGPT_PLUS, other, other.compressor)
        del other
    frames = captions.frames_of(model, 1, _side(place))
    yield from _profiles(place, model, frames)
    for tokens in (40, 100):
        yield from _case(place, f"langdc, {tokens}", model, _writing(place, model.compressor, tokens))
    with devices.making(torch.device(place.device), place.dtype):
        settings = {**model.config.compressor.settings, "base": DUAL}
        dual = build_compressor(MemberConfig(name="langdc", **settings), model.backbone)
    yield from _case(place, "langdc, 59, dual", model, _writing(place, dual.to(place.device, place.dtype).eval(), 59))


def _langdc(place: Place) -> VideoModel:
    if not place.tiny:
        return _cast(place, captions.full_size(place.device, place.dtype))
    model = checkpoint.load("sample:langdc")
    model.untrained = frozenset()  # projectors at random are as good as the rest
    return _cast(place, model)


def _cast(place: Place, model: VideoModel) -> VideoModel:
    return model.to(place.device).to(place.dtype).eval().requires_grad_(False)


def _side(place: Place) -> int:
    return 64 if place.tiny else 336


def _writing(place: Place, compressor: Any, tokens: int) -> Any:
    """The compressor, made to write captions of a fixed length: no token ends them."""
    compressor.captioner.end = [-1]
    compressor.captioner.max_soft_tokens = MOST_TINY if place.tiny else tokens
    return compressor


def _case(place: Place, name: str, model: VideoModel, member: TokenCompressor) -> Iterator[Row]:
    for count in (1, 2) if place.tiny else VIDEOS:
        frames = captions.frames_of(model, count, _side(place))
        calls = 1 if place.tiny else 5 if count == 1 else 3
        found = captions.times(model, member, frames, place.device, calls)
        token, floors = _reply_ms(place, model, member, frames, calls), _floors(place, model, member, frames)
        yield {
            "table": "times", "compressor": name, "videos": count, "tokens": found.tokens, "encode ms": found.encode,
            "compress ms": found.compress, "compress floor ms": floors["compress"], "first token ms": found.first,
            "first token floor ms": floors["first"], "first token / floor": found.first / floors["first"],
            "reply token ms": token, "reply token floor ms": floors["token"],
            "reply token / floor": None if token is None else token / floors["token"],
        }  # fmt: skip


def _asking(model: VideoModel, member: TokenCompressor, frames: list[Frames]) -> tuple[VideoLM, list]:
    """The model to ask, and a question about each video, which is encoded and compressed already."""
    lm = VideoLM(model)
    lm.compressor = member  # VideoLM(model, member) would refuse pools, since the model was made for LangDC
    with torch.no_grad():
        encoded = model.backbone.encode(frames, member.needs)
    batch = [
        (OpenVideo(lm, None, grids, video.seconds), captions.QUESTION)
        for grids, video in zip(encoded, frames, strict=True)
    ]
    lm.compress(batch)
    return lm, batch


def _reply_ms(
    place: Place, model: VideoModel, member: TokenCompressor, frames: list[Frames], calls: int
) -> float | None:
    """What a token of a reply takes after the first; None if the replies end with the first token."""
    lm, batch = _asking(model, member, frames)
    written = MOST_TINY if place.tiny else REPLY
    one, all_of_it = (
        captions.milliseconds(lambda n=n: lm.answer(batch, max_new_tokens=n), place.device, calls)
        for n in (1, 1 + written)
    )
    more = max(answer.reply_tokens or 0 for answer in lm.answer(batch, max_new_tokens=1 + written)) - 1
    return (all_of_it - one) / more if more > 0 else None


@torch.no_grad()
def _floors(place: Place, model: VideoModel, member: TokenCompressor, frames: list[Frames]) -> dict[str, float]:
    """Milliseconds of compressing, all to the first token, and a reply token."""
    backbone, count = model.backbone, len(frames)
    raw = backbone.encode(frames, member.needs)
    videos = model.features(VideoBatch(raw, [video.seconds for video in frames]), member.needs)
    with Counted() as counted:
        found = model.compress(videos, compressor=member)
    work = [use for per_video in found.work or () for use in per_video]
    reading = work_flops([replace(use, written=min(use.written, 1)) for use in work])
    compress = place.floor(counted.total + reading)
    if work:
        captioner: Any = member.captioner
        compress += max(use.written for use in work) * place.floor(0, weight_bytes(captioner.language_model))
    encode = place.floor(sum(encoder_flops(backbone, grids) for grids in raw))
    config = backbone.language_model.config.get_text_config()
    length = len(found.tokens[0]) + len(backbone.prompt([{"role": "user", "content": captions.QUESTION}]).ids)
    layers: Any = backbone.text_model.layers
    weights = weight_bytes(backbone.lm_head, *layers)
    read = place.floor(count * language_model_flops(config, length), weights)
    held = length * token_bytes(backbone.text_model.config, backbone.language_model.dtype)
    token = place.floor(count * language_model_flops(config, 1, length), weights + count * held)
    return {"compress": 1e3 * compress, "first": 1e3 * (encode + compress + read), "token": 1e3 * token}


def _profiles(place: Place, model: VideoModel, frames: list[Frames]) -> Iterator[Row]:
    member = _writing(place, model.compressor, 59)
    with torch.no_grad():
        raw = model.backbone.encode(frames, member.needs)
        videos = model.features(VideoBatch(raw, [video.seconds for video in frames]), member.needs)
        model.compress(videos, compressor=member)
        yield from costs("encode, 1 video", lambda: model.backbone.encode(frames, member.needs), place.device)
        yield from costs("compress, 1 video", lambda: model.compress(videos, compressor=member), place.device)
    lm, batch = _asking(model, member, frames)
    lm.answer(batch, max_new_tokens=8)
    yield from costs("reply of 8 tokens, 1 video", lambda: lm.answer(batch, max_new_tokens=8), place.device)
