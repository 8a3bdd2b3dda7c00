"""The device that the tests of this folder run on."""

import os

import pytest
import torch

from langdc import devices


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The accelerator; skipped where there is none. LANGDC_TEST_DEVICE=cpu runs the same tests on a CPU."""
    named = os.environ.get("LANGDC_TEST_DEVICE")
    if named is None and not devices.has_accelerator():
        pytest.skip("needs an accelerator; LANGDC_TEST_DEVICE=cpu runs the same on a CPU")
    return torch.device(named) if named is not None else devices.device()
