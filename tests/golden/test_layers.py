"""Layer compressors against the ranking and merging of the authors' code (torch 2.13, float32, CPU). No case is a tie,
but which row is the centre of a single cluster.

Recorded are states [n,D], rotated queries of the question [h,q,E] and keys [G,n,E]; how many rows are kept is given.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from langdc.interfaces import Rows
from langdc.layercompressors import build
from langdc.walk import paid_attention

FOLDER = Path(__file__).parent
CASES = json.loads((FOLDER / "layers.json").read_text())["cases"]


@pytest.fixture(scope="module")
def numbers() -> dict[str, Tensor]:
    return load_file(FOLDER / "layers.safetensors")


def recorded(numbers: dict[str, Tensor], case: dict, asking: int) -> Rows:
    """The rows of a prompt after layer 0, with the attention of the last `asking` of them."""
    before, shown, after = case["shape"]
    states, query, key = (numbers[f"{case['prompt']}.{part}"].float() for part in ("states", "query", "key"))
    video_id = torch.full([len(states)], -1)
    video_id[before : before + shown] = 0
    query = torch.cat([query.new_zeros(len(query), before + shown, query.shape[-1]), query], 1)
    attention = paid_attention(query[None], key[None], torch.arange(len(states))[-asking:])
    return Rows(states, torch.arange(len(states)), video_id, 32, shown, after, attention, key, states)


def cases(*methods: str) -> list:
    return [pytest.param(case, id=case["id"]) for case in CASES if case["method"] in methods]


@pytest.mark.parametrize("case", cases("fastv", "pyramiddrop", "holitom_inner"))
def test_by_the_last_row(numbers, case) -> None:
    rows, member = recorded(numbers, case, 1), build(case["method"], keep=0.9)
    at = member.begin(rows)[0]
    member.left = {at: case["count"]} if case["method"] == "pyramiddrop" else [case["count"]]
    found = member.keep(at, rows)
    assert found.index.tolist() == numbers[f"{case['id']}.keep"].tolist()
    if case["method"] == "holitom_inner":
        expected = numbers[f"{case['id']}.states"]
        torch.testing.assert_close(found.states[found.video_id >= 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("sparsevlm"))
def test_sparsevlm(numbers, case) -> None:
    """Theirs puts the merged rows after those that are kept; ours are where the centres were."""
    rows, name = recorded(numbers, case, case["shape"][2]), case["id"]
    member = build("sparsevlm", after=[0], stages=[case["count"]])
    member.begin(rows)
    assert member.raters.nonzero()[:, 0].tolist() == numbers[f"{name}.raters"].tolist()
    found = member.keep(0, rows)
    centres = numbers[f"{name}.centres"].long()
    if len(centres) == 1:
        kept = set(numbers[f"{name}.keep"].tolist())
        centres = torch.tensor([row for row in found.index.tolist() if row not in kept])
    assert found.index.tolist() == sorted(numbers[f"{name}.keep"].tolist() + centres.tolist())
    places = torch.searchsorted(found.index, centres)
    torch.testing.assert_close(found.states[places], numbers[f"{name}.merged"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("dart"))
def test_dart(numbers, case) -> None:
    rows, member = recorded(numbers, case, 1), build("dart", keep=0.9, variant="released")
    member.begin(rows)
    member.left = [case["count"]]
    found = member.keep(1, rows)
    assert found.index[found.video_id >= 0].tolist() == numbers[f"{case['id']}.keep"].tolist()
