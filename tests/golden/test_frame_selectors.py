"""AKS on recorded scores, against what the authors' code keeps of them; README.md here says what is stored."""

import json
from pathlib import Path

import numpy as np
import pytest

from langdc.frameselectors import build
from tests.imagetext import redness

CASES = json.loads((Path(__file__).parent / "aks.json").read_text())["cases"]


def kept(case: dict, variant: str) -> list[int]:
    settings = {"threshold": case["threshold"], "depth": case["depth"], "variant": variant}
    return sorted(build("aks", scorer=redness, **settings).choose(np.array(case["scores"]), case["budget"]))


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_release_keeps_the_same_frames(case: dict) -> None:
    assert kept(case, "released") == case["kept"]
    fixed = kept(case, "fixed")
    assert len(fixed) == case["budget"] >= len(case["kept"])
    assert (fixed == case["kept"]) == (case["budget"] % 2 ** case["depth"] == 0)
