"""Projectors have the layers their names say; pooling averages the cells it should."""

import pytest
import torch
from torch import nn

from langdc.projectors import average_pool, build_projector
from tests.reference.pooling import slow_pool


@pytest.mark.parametrize(("kind", "linears"), [("linear", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_layers(kind: str, linears: int) -> None:
    projector = build_projector(kind, 5, 7)
    layers = [m for m in projector.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(5, 7)] + [(7, 7)] * (linears - 1)
    assert sum(isinstance(m, nn.GELU) for m in projector.modules()) == linears - 1
    assert projector(torch.randn(2, 3, 5)).shape == (2, 3, 7)


def test_identity_keeps_the_width_or_refuses() -> None:
    values = torch.randn(3, 5)
    assert build_projector("identity", 5, 5)(values) is values
    with pytest.raises(ValueError, match="width 5 into 7; use 'linear'"):
        build_projector("identity", 5, 7)


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'mlp2_gelu'.*Did you mean 'mlp2x_gelu'"):
        build_projector("mlp2_gelu", 5, 7)


@pytest.mark.parametrize(("height", "side"), [(6, 3), (6, 4), (5, 2), (4, 4), (7, 1)])
def test_pooling(height: int, side: int) -> None:
    grid = torch.randn(2, height, height, 3)
    torch.testing.assert_close(average_pool(grid, side), slow_pool(grid, side), atol=1e-6, rtol=0)
