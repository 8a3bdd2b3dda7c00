"""An image is one segment, also where a backbone cuts it into several crops, as LLaVA does."""

import pytest
import torch

from langdc.conformance.candidates import record
from langdc.types import Context
from tests import stock
from tests.contract import grid

MEMBERS = ["pool", "resampler", "matryoshka", "ldpv2", "langdc"]


@pytest.mark.parametrize("frames_per_segment", [1, 2])
@pytest.mark.parametrize("member", MEMBERS)
def test_all_crops_of_an_image_are_one_segment(member: str, frames_per_segment: int) -> None:
    model, _ = grid.build("llava_onevision", member, frames_per_segment=frames_per_segment)
    shown = [stock.clip(3, count=1), stock.clip(1, count=4), stock.clip(4, count=1, height=80, width=24)]
    videos = model.backbone.features_of(shown, frozenset({"projected", "encoder"}))
    assert len(videos[0].encoder["video"].values) > 1, "several crops"
    with torch.no_grad():
        found = model.compressor(videos).tokens
        alone = [model.compressor([video]).tokens[0] for video in videos]
    for tokens in (found[0], found[2]):
        assert len(tokens) > 0
        assert not tokens.segment.any()
    assert int(found[1].segment.max()) == 4 // frames_per_segment - 1
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one.values, other.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llava_onevision", "llava_video", "internvl", "video_llama_3"])
def test_langdc_learns_one_caption_from_an_image(name: str) -> None:
    model, _ = grid.build(name, "langdc", frames_per_segment=1)
    videos = model.backbone.features_of([stock.clip(3, count=1)], frozenset({"projected", "encoder"}))
    caption = model.compressor.targets(record(1, 1, seed=1))["captions"]
    context = Context(training=True, targets={"captions": [caption]}, wanted=frozenset({"tokens", "caption"}))
    found = model.compressor(videos, context)
    loss, count = found.losses["caption"]
    assert count == len(caption[0]) + 1
    loss.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in model.compressor.projectors.parameters())
