"""What is found does not depend on how much is computed at once."""

import pytest
import torch

from langdc import devices
from langdc.compressors.base import importance
from tests.compressors.grids import compress, grid_of, scenes

BYTES = [1, 1000, 3000]
"""One thing at a time; and parts of which the last is smaller."""
WITHOUT_WEIGHTS = (
    "divprune",
    "dycoke",
    "evs",
    "visionzip",
    "fastvid",
    "holitom_outer",
    "flashvid",
    "vidcom2",
    "dpselect",
    "ma_lmm",
)


@pytest.mark.parametrize("size", BYTES)
@pytest.mark.parametrize("variant", ["fixed", "released"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("visionzip", {}),
        ("fastvid", {"segments": 2, "change": 0.0}),
        ("fastvid", {"segments": 1, "change": -1.0, "still": 2.0, "stride": 2}),
        ("holitom_outer", {}),
        ("holitom_outer", {"context": 0.5, "still": 0.5}),
        ("flashvid", {}),
        ("flashvid", {"segments": 1, "change": -1.0, "alike": 0.3, "events": False}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_of_blocks(
    monkeypatch: pytest.MonkeyPatch, name: str, settings: dict, variant: str, size: int, dtype: torch.dtype
) -> None:
    grid = grid_of(scenes(13, 3, 5).to(dtype))
    expected = compress(name, grid, keep=0.4, variant=variant, **settings)
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", size)
    found = compress(name, grid, keep=0.4, variant=variant, **settings)
    assert found.source is not None and expected.source is not None
    assert found.source.tolist() == expected.source.tolist()
    torch.testing.assert_close(found.values, expected.values)


@pytest.mark.parametrize("size", BYTES)
def test_lengths(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """By the squares of the tokens in float64, though they come in bfloat16."""
    grid = grid_of(scenes(7, 3, 5).bfloat16())
    monkeypatch.setitem(devices._BLOCK_BYTES, "cpu", size)
    expected = grid.values.flatten(1, 2).double().square().sum(-1).sqrt()
    torch.testing.assert_close(importance(grid), expected.float())


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_gradients_of_the_kept(name: str) -> None:
    """What is trained before a method without weights learns from the tokens that it keeps, also from merged ones."""
    values = scenes(13, 3, 5).requires_grad_()
    found = compress(name, grid_of(values), keep=0.4)
    found.values.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad.sum().item(), float(found.values.numel()))
