"""Every member of every registry on a card in bfloat16; the checks are in `checks.py`.

LANGDC_TEST_DEVICE=cpu pytest -m gpu tests/gpu    # the same on a CPU
"""

import pytest
import torch

from langdc.conformance.candidates import Candidate
from langdc.conformance.prompts import KINDS
from tests.contract import grid
from tests.contract.test_compressors import candidates
from tests.contract.test_kvcompressors import CANDIDATES, CHOOSING
from tests.contract.test_layercompressors import CANDIDATES as LAYER_CANDIDATES
from tests.contract.test_training import FAST
from tests.gpu import checks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", grid.BACKBONES)
def test_backbones(name: str, device: torch.device) -> None:
    checks.backbone(name, device)


@pytest.mark.parametrize("candidate", candidates(), ids=str)
def test_token_compressors(candidate: Candidate, device: torch.device) -> None:
    checks.compressor(candidate, device)


@pytest.mark.parametrize("kind", KINDS)
def test_chunked_reading(kind: str, device: torch.device) -> None:
    checks.reading(kind, device)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=str)
def test_kv_compressors(candidate: Candidate, device: torch.device) -> None:
    checks.reading("sections", device, candidate)


@pytest.mark.parametrize("candidate", CHOOSING, ids=str)
def test_kv_compressors_of_replies(candidate: Candidate, device: torch.device) -> None:
    checks.choosing(candidate, device)


@pytest.mark.parametrize("candidate", LAYER_CANDIDATES, ids=str)
def test_layer_compressors(candidate: Candidate, device: torch.device) -> None:
    checks.layers(candidate, device)


@pytest.mark.parametrize(("name", "member"), [pytest.param(*pair, id="-".join(pair)) for pair in FAST])
def test_training_steps(name: str, member: str, device: torch.device) -> None:
    checks.training_step(name, member, device)


def test_captions(device: torch.device) -> None:
    checks.captions(device)


@pytest.mark.parametrize("name", grid.BACKBONES)
def test_replies(name: str, device: torch.device) -> None:
    checks.replies(name, device)
