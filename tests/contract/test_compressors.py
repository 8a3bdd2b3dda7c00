"""What every compressor of the zoo promises, whoever wrote it, and what learned ones do besides."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from langdc.compressors import compressors
from langdc.config import MemberConfig
from langdc.conformance.candidates import WIDTH, Candidate, noise
from langdc.conformance.test_compressor import *  # noqa: F403 - the same tests for our own members
from langdc.conformance.test_compressor import alone, same
from langdc.interfaces import TokenCompressor
from langdc.model import build_compressor
from langdc.types import VideoFeatures
from tests import tiny

LEARNED = {
    **tiny.COMPRESSORS,
    "ldpv2": {"sides": [3, 2]},
    "resampler": {"queries": 3},
    "matryoshka": {"queries": 3},
    "matryoshka, few tokens": {"queries": 3, "tokens": 5},
    "selector": {"keep": 0.3},
    "langdc, grounded": tiny.langdc_settings(grounded=True),
    "langdc, dual": tiny.langdc_settings(base={"name": "pool", "sides": [2, 2]}, segment_marker=True),
}
TRAINING_FREE: dict[str, dict] = {
    "identity": {},
    "random": {},
    "uniform": {},
    "uniform, resolution": {"by": "resolution"},
    "uniform, stride": {"by": "stride"},
    "uniform, pool": {"by": "pool"},
    "dpselect": {},
    "dpselect, patches": {"per": "patch"},
    "vidcom2": {},
    "vidcom2, paper": {"variant": "paper"},
    "vidcom2, vllm": {"variant": "vllm"},
    "ma_lmm": {},
    "ma_lmm, frames": {"per": "frame", "soft": False},
    "visionzip": {},
    "divprune": {},
    "divprune, frames": {"per": "frame"},
    "dycoke": {},
    "evs": {},
    "evs, released": {"variant": "released"},
    "fastvid": {},
    "holitom_outer": {},
    "holitom_outer, contexts": {"context": 0.5},
    "cdpruner": {},
    "flashvid": {},
    "flashvid, no events": {"events": False, "segments": 4},
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
    selector = [
        Candidate(f"selector, {name}", partial(compressors.get("selector"), width=WIDTH, **settings))
        for name, settings in (("budgets", {}), ("question", {"question": True}))
    ]
    return free + learned + selector


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "token_candidate" in metafunc.fixturenames:
        metafunc.parametrize("token_candidate", candidates(), ids=str)


def make(variant: str) -> TokenCompressor:
    torch.manual_seed(0)
    return for_backbone(variant.split(",")[0], **LEARNED[variant]).eval()


def test_every_member_is_held_to_the_contract() -> None:
    assert {candidate.name.split(",")[0] for candidate in candidates()} == set(compressors.names())


@pytest.mark.parametrize("variant", LEARNED)
def test_tokens_teach_the_projectors_of_the_backbone(variant: str) -> None:
    """Where the compressor reads their features."""
    compressor, video = make(variant), tiny.features()
    leaves = [grid.values.requires_grad_() for grid in video.projected]
    values = compressor([video]).tokens[0].values
    (values * torch.randn_like(values)).sum().backward()
    assert any(leaf.grad is not None for leaf in leaves) == ("projected" in compressor.needs)


@pytest.mark.parametrize("variant", LEARNED)
def test_what_is_not_needed_may_be_missing(variant: str) -> None:
    compressor, video = make(variant), tiny.features()
    main = video.projected if "projected" in compressor.needs else ()
    encoded = video.encoder if "encoder" in compressor.needs else {}
    less = VideoFeatures(main, encoded, video.seconds, video.question if "question" in compressor.needs else None)
    same(alone(compressor, less), alone(compressor, video))


@pytest.mark.parametrize("variant", [variant for variant in LEARNED if variant not in ("pool", "selector")])
def test_a_missing_stream_is_named(variant: str) -> None:
    video = tiny.features()
    with pytest.raises(ValueError, match="reads the encoder features 'image'; a video has 'video'"):
        make(variant)([replace(video, encoder={"video": video.encoder["video"]})])
