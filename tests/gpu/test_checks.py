"""The checks for a card work, shown on a CPU by one member of each kind, and find what is wrong."""

from dataclasses import replace

import pytest
import torch

from langdc.compressors.plain import Identity
from langdc.conformance.candidates import Candidate
from langdc.types import VideoTokens
from tests.contract.test_compressors import candidates
from tests.contract.test_kvcompressors import CANDIDATES, CHOOSING
from tests.contract.test_layercompressors import CANDIDATES as LAYER_CANDIDATES
from tests.gpu import checks

CPU = torch.device("cpu")


def named(name: str, among: list[Candidate]) -> Candidate:
    return next(each for each in among if each.name == name)


def test_one_member_of_each_kind() -> None:
    checks.backbone("qwen2_5_vl", CPU)
    checks.backbone("videogpt_plus", CPU)
    for name in ("vidcom2", "resampler", "langdc"):
        checks.compressor(named(name, candidates()), CPU)
    checks.reading("one axis", CPU)
    checks.reading("sections", CPU, named("flexreduc", CANDIDATES))
    checks.choosing(CHOOSING[0], CPU)
    checks.layers(named("holitom_inner, early", LAYER_CANDIDATES), CPU)
    checks.training_step("qwen2_5_vl", "resampler", CPU)
    checks.captions(CPU)
    checks.replies("qwen2_5_vl", CPU)


class Coarse(Identity):
    """Rounds what it should keep, unless that is float32."""

    def one(self, video) -> VideoTokens:
        found = super().one(video)
        return found if found.values.dtype == torch.float32 else replace(found, values=(found.values * 2).round() / 2)


def test_a_coarse_compressor_is_found() -> None:
    checks.compressor(Candidate("identity", Identity), CPU)
    with pytest.raises(AssertionError):
        checks.compressor(Candidate("coarse", Coarse), CPU)


def test_keys_that_differ_are_found() -> None:
    rows = [torch.arange(10), torch.arange(20).reshape(2, 10)]
    assert checks._common(rows, rows) == 1
    assert checks._common([rows[0] + 5, rows[1]], rows) == pytest.approx((0.5 + 1 + 1) / 3)
