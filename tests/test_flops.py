"""What an answer says it took agrees with torch's counter around the same stage of the same call, for everything.

Torch's counter knows nothing of a few operations that are products all the same; they are given to it here, and other
operations of that kind must not turn up.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from langdc.backbones import backbones
from langdc.compressors import build, compressors
from langdc.config import MemberConfig, check
from langdc.flops import caption_flops
from langdc.interfaces import TokenCompressor
from langdc.kvcompressors import kvcompressors
from langdc.model import VideoModel, build_compressor
from langdc.pipeline import OpenVideo, VideoLM
from langdc.types import FeatureGrid, VideoFeatures
from tests import stock, tiny
from tests.contract.test_compressors import TRAINING_FREE
from tests.contract.test_kvcompressors import VARIANTS

WITHIN = 0.02
QUESTION = "what is in the video ?"
aten = torch.ops.aten


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _vector(matrix, vector, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(matrix)


def _pairs(one, other, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(one) * other[-2]


def _refused(*shapes, **kwargs) -> int:
    raise AssertionError(f"A product of {shapes} that nobody counts")


ADDED = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten.mv: _vector,
    aten._euclidean_dist: _pairs,
    aten._cdist_forward: _pairs,
    **dict.fromkeys([aten.dot, aten.vdot, aten.addmv, aten.addbmm, aten._native_multi_head_attention], _refused),
}


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """What is done inside, by torch's counter."""
    with FlopCounterMode(display=False, custom_mapping=ADDED) as counter:
        yield counter.get_total_flops


def agrees(said: float, counted: float) -> bool:
    """Within 2 %; nothing where nothing was counted."""
    return said == pytest.approx(counted, rel=WITHIN, abs=0)


# ---- backbones, each with all compressors


@cache
def folder() -> Path:
    return Path(mkdtemp(prefix="flops"))


@cache
def clip() -> Path:
    return stock.mp4(folder(), count=24, fps=12)


@cache
def picture() -> Path:
    path = folder() / "picture.png"
    Image.fromarray(stock.clip(2, count=1).pixels[0].permute(1, 2, 0).numpy()).save(path)
    return path


@cache
def model(backbone: str) -> VideoModel:
    if backbone == "videogpt_plus":
        return tiny.model("pool")
    return VideoLM.from_pretrained(stock.folder(backbone), backbone={"name": backbone, "frames": 8}).model


@cache
def opened(backbone: str, saliency: bool) -> tuple[OpenVideo, int]:
    """A video of a backbone, and what encoding it was counted to take."""
    lm = VideoLM(model(backbone), build("visionzip" if saliency else "identity", **({"keep": 0.5} if saliency else {})))
    with counting() as counted:
        video = lm.open(clip())
    return video, counted()


def member(backbone: str, variant: str) -> TokenCompressor:
    """A compressor with small settings; half is kept where nothing is said."""
    name, built_for = variant.split(",")[0], model(backbone).backbone
    sides = [3, 2] if len(built_for.stream_widths) == 2 else [2]
    learned = {
        "pool": {"sides": sides},
        "ldpv2": {"sides": sides},
        "resampler": {"queries": 3, "heads": 2},
        "langdc": tiny.langdc_settings(pool=sides, max_soft_tokens=11),
        "langdc, dual": tiny.langdc_settings(pool=sides, base={"name": "pool", "sides": sides}, segment_marker=True),
    }
    budget = {} if variant in learned or name in ("identity", "chain") else {"keep": 0.5}
    settings = {**learned, **TRAINING_FREE}[variant]
    torch.manual_seed(0)
    chosen = check(MemberConfig, {"name": name, **budget, **settings}, "test")
    return build_compressor(chosen, built_for).eval().requires_grad_(False)


def _on_backbones(variants: Iterable[str], one: str) -> list[tuple[str, str]]:
    """Every member on every backbone, its further variants on one."""
    return [
        (backbone, variant) for variant in variants for backbone in ([one] if "," in variant else backbones.names())
    ]


TOKEN_VARIANTS = [*TRAINING_FREE, "pool", "ldpv2", "resampler", "langdc", "langdc, dual"]
KV_VARIANTS = {**VARIANTS, "pivotkv, relevant": {"scorer": {"name": "question", "relevant": True}}}


def test_everything_that_is_registered_is_here() -> None:
    assert {variant.split(",")[0] for variant in TOKEN_VARIANTS} == set(compressors.names())
    assert {variant.split(",")[0] for variant in KV_VARIANTS} == set(kvcompressors.names())


def check_stages(lm: VideoLM, video: OpenVideo, encoded: int) -> None:
    """Ask for real, and compare every stage."""
    with counting() as compressing:
        video.compressed  # noqa: B018 - what is counted
    with counting() as reading:
        video.ask(QUESTION, max_new_tokens=1)
    with counting() as both:
        answer = video.ask(QUESTION, max_new_tokens=4)
    counts = {"encode": encoded, "compress": compressing(), "prefill": reading(), "generate": both() - reading()}
    said = answer.flops
    wrong = {part: (said[part], count) for part, count in counts.items() if not agrees(said[part], count)}
    assert not wrong, f"{type(lm.compressor).__name__}: said, counted: {wrong}"


@pytest.mark.parametrize(("backbone", "variant"), _on_backbones(TOKEN_VARIANTS, "videogpt_plus"))
def test_a_token_compressor(backbone: str, variant: str) -> None:
    compressor = member(backbone, variant)
    if model(backbone).backbone.needs_places and not compressor.keeps_places:
        with pytest.raises(ValueError, match="makes new tokens"):
            VideoLM(model(backbone), compressor)
        pytest.skip("it makes new tokens, which this backbone cannot place")
    if backbone == "videogpt_plus" and variant == "chain":
        pytest.skip("a chain goes through one stream")
    lm = VideoLM(model(backbone), compressor)
    same, encoded = opened(backbone, "saliency" in compressor.needs)
    check_stages(lm, lm.open(clip(), same=same), encoded)


@pytest.mark.parametrize(("backbone", "variant"), _on_backbones(KV_VARIANTS, "qwen2_5_vl"))
def test_a_kv_compressor_reading_in_chunks(backbone: str, variant: str) -> None:
    kv = kvcompressors.build(variant.split(",")[0], **{"keep": 0.5, "chunk_frames": 4, **KV_VARIANTS[variant]})
    lm = VideoLM(model(backbone), build("identity"), kv)
    same, encoded = opened(backbone, False)
    check_stages(lm, lm.open(clip(), same=same), encoded)
    # a prompt without a video costs nothing but its reading, whatever was asked before
    with counting() as counted:
        answer = lm.ask(None, "how many ?", max_new_tokens=1)
    assert agrees(answer.flops["prefill"], counted())


@pytest.mark.parametrize("backbone", backbones.names())
def test_a_picture(backbone: str) -> None:
    lm = VideoLM(model(backbone), build("identity"))
    with counting() as counted:
        image = lm.open(picture())
    check_stages(lm, image, counted())


# ---- sizes that depend on what is seen


def scenes(seed: int, frames: int, places: tuple[int, int], width: int, streams: int = 1) -> VideoFeatures:
    """Videos of stills, slow and fast parts, so that methods cut, merge and thin out."""
    dice = torch.Generator().manual_seed(seed)
    grids = []
    for _ in range(streams):
        steps = torch.randn(frames, *places, width, generator=dice)
        speed = torch.tensor([0.0, 0.05, 0.3, 2.0])[torch.randint(0, 4, (frames,), generator=dice)]
        moves = (steps * speed[:, None, None, None]).cumsum(0)
        grids.append(FeatureGrid(torch.randn(1, *places, width, generator=dice) + moves))
    return VideoFeatures(tuple(grids), {"video": grids[0]}, torch.arange(frames) / 2)


MORE = {
    **TRAINING_FREE,
    "vidcom2, released": {"variant": "released"},
    "visionzip, released": {"variant": "released"},
    "fastvid, released": {"variant": "released"},
    "fastvid, few": {"segments": 2, "stride": 1, "context": 0.9},
    "holitom_outer, released": {"variant": "released", "context": 0.3},
    "holitom_outer, strict": {"still": 0.99, "context": 0.5},
}


@pytest.mark.parametrize("keep", [0.03, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("variant", [v for v in MORE if v.split(",")[0] not in ("identity", "chain")])
@torch.no_grad()
def test_whatever_a_video_shows(variant: str, keep: float) -> None:
    compressor = build(variant.split(",")[0], keep=keep, **MORE[variant])
    for seed, (frames, places, streams) in enumerate([(1, (4, 4), 1), (17, (6, 7), 1), (40, (3, 5), 2)]):
        video = scenes(seed, frames, places, 24, streams)
        with counting() as counted:
            compressor(video)
        assert agrees(compressor.flops(video), counted()), (frames, compressor.flops(video), counted())


def test_methods_are_not_free() -> None:
    """What was found by counting: these multiply tokens with each other, the others look at one place at a time."""
    video = scenes(1, 17, (6, 7), 24)
    free = {v for v in MORE if v != "chain" and not build(v.split(",")[0], **_quarter(v)).flops(video)}
    assert {v.split(",")[0] for v in free} == {"identity", "random", "uniform", "dpselect", "ma_lmm", "dycoke"}


def _quarter(variant: str) -> dict:
    return {**({} if variant == "identity" else {"keep": 0.25}), **MORE[variant]}


def test_a_chain_adds_up() -> None:
    chain = build("chain", members=[{"name": "visionzip", "keep": 0.5}, {"name": "vidcom2", "keep": 0.5}])
    video = scenes(3, 12, (4, 5), 24)
    with counting() as counted:
        chain(video)
    assert agrees(chain.flops(video), counted())


@pytest.mark.parametrize("every", [1, 3, 5, None])
def test_captions_of_all_lengths(every: int | None) -> None:
    """All segments are written on until the longest has ended and that was noticed; the last segment is short."""
    most = 20
    compressor = tiny.model("langdc", seed=2, max_soft_tokens=most).captioner
    compressor.captioner.end = list(range(0, len(compressor.captioner.tokenizer), every)) if every else [-1]
    video = tiny.features(count=14)
    with torch.no_grad(), counting() as counted:
        found = compressor.caption([video])
    lengths = [len(ids) for ids in found.ids[0]]
    assert (max(lengths) == most) == (every is None)
    assert agrees(caption_flops(compressor, video.encoder, lengths), counted()), lengths


def test_a_question_costs_the_same_alone_and_in_a_batch() -> None:
    lm = VideoLM(model("videogpt_plus"))
    video = lm.open(clip())
    alone = video.ask(QUESTION, max_new_tokens=4).flops
    again = replace(video)
    together = lm.answer([(again, QUESTION), (again, "how many ?")], max_new_tokens=4)
    assert together[0].flops == alone and together[1].flops["prefill"] < alone["prefill"]
