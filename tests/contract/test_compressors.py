"""What every compressor of the zoo promises, whoever wrote it."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from langdc.compressors import compressors
from langdc.config import MemberConfig
from langdc.interfaces import TokenCompressor
from langdc.model import build_compressor
from langdc.types import FeatureGrid, VideoFeatures, VideoTokens
from tests import tiny

VARIANTS = {
    **tiny.COMPRESSORS,
    "langdc dual": tiny.langdc_settings(base={"name": "pool", "sides": [2, 2]}, segment_marker=True),
}


class FakeHost(torch.nn.Module):
    """What a compressor may ask of a host."""

    width, stream_widths, frames_per_segment = tiny.HOST_WIDTH, {"image": 24, "video": 32}, 4


def make(variant: str) -> TokenCompressor:
    torch.manual_seed(0)
    return build_compressor(MemberConfig(name=variant.split()[0], **VARIANTS[variant]), FakeHost()).eval()


def grids(video: VideoFeatures) -> list[Tensor]:
    return [grid.values for grid in (*video.main, *video.raw.values())]


def reached(module: torch.nn.Module) -> set[str]:
    """Parameters that have a gradient."""
    return {name for name, parameter in module.named_parameters() if parameter.grad is not None}


def named(module: torch.nn.Module, starts: tuple[str, ...]) -> set[str]:
    return {name for name, _ in module.named_parameters() if name.startswith(starts)}


def same(one: VideoTokens, other: VideoTokens, tolerance: float = 0.0) -> None:
    for field in fields(VideoTokens):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
        else:
            assert type(a) is type(b)


def test_every_member_is_held_to_the_contract() -> None:
    assert {variant.split()[0] for variant in VARIANTS} == set(compressors.names())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_have_host_width_the_same_type_and_rising_segments(variant: str, dtype: torch.dtype) -> None:
    compressor, video = make(variant).to(dtype), tiny.features(dtype=dtype)
    found = compressor(video)
    assert found.values.dtype == dtype
    assert found.values.device == video.main[0].values.device
    assert found.values.shape[1] == tiny.HOST_WIDTH
    assert 0 < len(found) < sum(grid.tokens for grid in video.main)
    assert found.segment.dtype == torch.long
    assert set(found.segment.tolist()) <= set(range(4))
    if "dual" not in variant and variant != "pool":  # streams follow each other, each in order
        assert (found.segment.diff() >= 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_equals_its_videos_alone(variant: str) -> None:
    compressor = make(variant)
    videos = [tiny.features(0), tiny.features(1, count=1), tiny.features(2, count=8)]
    for together, video in zip(compressor.batch(videos), videos, strict=True):
        same(together, compressor(video), tolerance=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_again_and_inputs_untouched(variant: str) -> None:
    compressor, video = make(variant), tiny.features()
    before = [values.clone() for values in grids(video)]
    same(compressor(video), compressor(video))
    assert all(torch.equal(a, b) for a, b in zip(before, grids(video), strict=True))
    same(compressor(video), make(variant)(tiny.features()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_what_is_trained(variant: str) -> None:
    """Tokens teach the host's projectors, the post-projector and markers; captions teach the captioner."""
    compressor, video = make(variant).requires_grad_(True), tiny.features()
    leaves = [grid.values.requires_grad_() for grid in video.main]
    found = compressor(video)
    (found.values * torch.randn_like(found.values)).sum().backward()
    assert any(leaf.grad is not None for leaf in leaves) == ("main" in compressor.needs)
    assert reached(compressor) == named(compressor, ("post_projector", "segment_marker"))
    if variant.startswith("langdc"):
        compressor.zero_grad()
        captions = [[compressor.captioner.encode("red ring")] * 4]
        compressor.supervised([video], captions).loss.backward()
        assert reached(compressor) == named(compressor, ("captioner.", "projectors."))


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_is_a_video_of_one_frame(variant: str) -> None:
    found = make(variant)(tiny.features(count=1))
    assert set(found.segment.tolist()) == {0}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_not_needed_may_be_missing(variant: str) -> None:
    compressor, video = make(variant), tiny.features()
    main = video.main if "main" in compressor.needs else ()
    raw = video.raw if "raw" in compressor.needs else {}
    same(compressor(VideoFeatures(main, raw, video.seconds)), compressor(video))
    assert all(isinstance(grid, FeatureGrid) for grid in main)
