"""What every frame selector of the zoo promises, and that a promise that is broken is seen."""

from typing import Any

import pytest
import torch
from torch import Tensor

from langdc.conformance.candidates import Candidate
from langdc.conformance.test_frameselector import *  # noqa: F403 - the same tests for our own members
from langdc.conformance.test_frameselector import TestFrameSelector
from langdc.frameselectors import frameselectors
from langdc.interfaces import FrameSelector
from langdc.types import Frames
from tests.imagetext import redness

VARIANTS: dict[str, dict] = {
    "uniform": {},
    "top": {"scorer": redness},
    "aks": {"scorer": redness},
    "aks, released": {"scorer": redness, "variant": "released", "depth": 0},
}
CANDIDATES = [Candidate(name, frameselectors.get(name.split(",")[0]), given) for name, given in VARIANTS.items()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "frame_candidate" in metafunc.fixturenames:
        metafunc.parametrize("frame_candidate", CANDIDATES, ids=str)


def test_every_member_is_held_to_the_contract() -> None:
    assert {variant.split(",")[0] for variant in VARIANTS} == set(frameselectors.names())


class Broken(FrameSelector):
    """Chooses as `rule` says."""

    blind = True

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def select(self, frames: Frames, question: str, budget: int) -> Tensor:
        return self.rule(frames, question, budget)


@pytest.mark.parametrize(
    ("rule", "test", "given"),
    [
        (lambda frames, question, budget: torch.arange(budget), "some_frames_in_their_order", (2, 7)),
        (lambda frames, question, budget: torch.zeros(2).long(), "some_frames_in_their_order", (24, 7)),
        (lambda frames, question, budget: torch.arange(0), "some_frames_in_their_order", (24, 7)),
        (lambda *_: torch.randint(1000, (1,)), "the_same_again_and_inputs_untouched", ()),
        (lambda frames, question, budget: torch.tensor([len(question)]), "a_blind_one_looks_at_nothing", ()),
    ],
)
def test_a_broken_promise_is_seen(rule: Any, test: str, given: tuple) -> None:
    with pytest.raises(AssertionError):
        getattr(TestFrameSelector(), f"test_{test}")(Candidate("broken", Broken, {"rule": rule}), *given)
