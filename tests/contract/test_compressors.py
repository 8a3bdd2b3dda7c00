"""What every compressor of the zoo promises, whoever wrote it, and what learned ones do besides."""

from functools import partial

import pytest
import torch

from langdc.compressors import compressors
from langdc.config import MemberConfig
from langdc.conformance.candidates import Candidate, noise
from langdc.conformance.test_compressor import *  # noqa: F403 - the same tests for our own members
from langdc.conformance.test_compressor import same
from langdc.interfaces import TokenCompressor
from langdc.model import build_compressor
from langdc.types import FeatureGrid, VideoFeatures
from tests import tiny

LEARNED = {
    **tiny.COMPRESSORS,
    "ldpv2": {"sides": [3, 2]},
    "resampler": {"queries": 3},
    "langdc, dual": tiny.langdc_settings(base={"name": "pool", "sides": [2, 2]}, segment_marker=True),
}
TRAINING_FREE: dict[str, dict] = {
    "identity": {},
    "random": {},
    "uniform": {},
    "uniform, resolution": {"by": "resolution"},
    "dpselect": {},
    "dpselect, patches": {"per": "patch"},
    "vidcom2": {},
    "vidcom2, paper": {"variant": "paper"},
    "ma_lmm": {},
    "ma_lmm, frames": {"per": "frame", "soft": False},
    "visionzip": {},
    "dycoke": {},
    "fastvid": {},
    "holitom_outer": {},
    "holitom_outer, contexts": {"context": 0.5},
    "chain": {"members": [{"name": "dpselect", "keep": 0.5}, {"name": "vidcom2", "keep": 0.5}]},
}


class FakeBackbone(torch.nn.Module):
    """What a compressor may ask of a backbone."""

    width, stream_widths, frames_per_segment, frames_per_step = tiny.BACKBONE_WIDTH, {"image": 24, "video": 32}, 4, 1


def for_backbone(name: str, **settings) -> TokenCompressor:
    return build_compressor(MemberConfig(name=name, **settings), FakeBackbone())


def candidates() -> list[Candidate]:
    free = [Candidate(v, compressors.get(v.split(",")[0]), given, noise) for v, given in TRAINING_FREE.items()]
    learned = [
        Candidate(v, partial(for_backbone, v.split(",")[0]), given, tiny.features) for v, given in LEARNED.items()
    ]
    return free + learned


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "token_candidate" in metafunc.fixturenames:
        metafunc.parametrize("token_candidate", candidates(), ids=str)


def make(variant: str) -> TokenCompressor:
    torch.manual_seed(0)
    return for_backbone(variant.split(",")[0], **LEARNED[variant]).eval()


def reached(module: torch.nn.Module) -> set[str]:
    """Parameters that have a gradient."""
    return {name for name, parameter in module.named_parameters() if parameter.grad is not None}


def named(module: torch.nn.Module, starts: tuple[str, ...]) -> set[str]:
    return {name for name, _ in module.named_parameters() if name.startswith(starts)}


def test_every_member_is_held_to_the_contract() -> None:
    assert {candidate.name.split(",")[0] for candidate in candidates()} == set(compressors.names())


@pytest.mark.parametrize("variant", LEARNED)
def test_gradients_reach_what_is_trained(variant: str) -> None:
    """Tokens teach the backbone's projectors, LangDC's post-projector and markers, all of LDPv2 and the resampler."""
    compressor, video = make(variant).requires_grad_(True), tiny.features()
    leaves = [grid.values.requires_grad_() for grid in video.projected]
    found = compressor(video)
    (found.values * torch.randn_like(found.values)).sum().backward()
    assert any(leaf.grad is not None for leaf in leaves) == ("projected" in compressor.needs)
    starts = ("post_projector", "segment_marker") if variant.startswith("langdc") else ("",)
    assert reached(compressor) == named(compressor, starts)
    if variant.startswith("langdc"):
        compressor.zero_grad()
        captions = [[compressor.captioner.encode("red ring")] * 4]
        compressor.supervised([video], captions).loss.backward()
        assert reached(compressor) == named(compressor, ("captioner.", "projectors."))


@pytest.mark.parametrize("variant", LEARNED)
def test_what_is_not_needed_may_be_missing(variant: str) -> None:
    compressor, video = make(variant), tiny.features()
    main = video.projected if "projected" in compressor.needs else ()
    encoded = video.encoder if "encoder" in compressor.needs else {}
    same(compressor(VideoFeatures(main, encoded, video.seconds)), compressor(video))
    assert all(isinstance(grid, FeatureGrid) for grid in main)
