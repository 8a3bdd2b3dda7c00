"""Small modules between encoders and language models: projectors and pooling.

Letters: T frames, H W patch grid, C width in, D width out.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from langdc.registry import nearest

PROJECTORS = ("identity", "linear", "mlp2x_gelu", "mlp3x_gelu")


def build_projector(kind: str, width_in: int, width_out: int) -> nn.Module:
    """Make a projector: "identity", "linear", or "mlpNx_gelu" with N linear layers (LLaVA's; N = 2 in VideoGPT+)."""
    if kind not in PROJECTORS:
        raise ValueError(f"Unknown projector {kind!r}.{nearest(kind, PROJECTORS)}")
    if kind == "identity":
        if width_in != width_out:
            raise ValueError(f"An identity projector cannot turn width {width_in} into {width_out}; use 'linear'.")
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(width_in, width_out)
    layers: list[nn.Module] = [nn.Linear(width_in, width_out)]
    for _ in range(int(kind[3]) - 1):
        layers += [nn.GELU(), nn.Linear(width_out, width_out)]
    return nn.Sequential(*layers)


def average_pool(grid: Tensor, side: int) -> Tensor:
    """Average a grid [T,H,W,C] over space to [T,side,side,C]; adaptive, so H need not be a multiple of `side`."""
    if grid.shape[1] == side and grid.shape[2] == side:
        return grid
    return F.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)
