"""Small modules between encoders and language models. Letters: T frames, H W patch grid, C width in, D width out."""

import torch
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


class Vectors(nn.Module):
    """A learned table [n,D]; calling it returns a copy. A module of its own, as ZeRO-3 gathers weights for the backward
    pass only of modules that return tensors, and partitions them again before they are used.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width) * 0.02)

    def __len__(self) -> int:
        return len(self.weight)

    def forward(self) -> Tensor:
        return self.weight.clone()


class Places(nn.Module):
    """A learned vector per step, row and column, by which tokens say when and where they were seen."""

    def __init__(self, steps: int, side: int, width: int) -> None:
        super().__init__()
        self.step, self.row, self.column = Vectors(steps, width), Vectors(side, width), Vectors(side, width)

    def forward(self, lengths: list[int]) -> Tensor:
        """The sums for videos of `lengths` frames, one after the other: [sum T,H,W,D].

        Frames share the steps out among them: of 16 steps, each second one is that of a frame where there are 8.
        """
        steps = self.step()
        taken = torch.cat([torch.arange(length, device=steps.device) * len(steps) // length for length in lengths])
        return steps[taken][:, None, None] + self.row()[:, None] + self.column()


def project_ragged(projector: nn.Module, grids: list[Tensor]) -> list[Tensor]:
    """Project grids [T,H,W,C] of any shapes to [T,H,W,D] by one call of the projector."""
    rows = projector(torch.cat([grid.flatten(0, 2) for grid in grids]))
    parts = rows.split([grid.shape[:3].numel() for grid in grids])
    return [part.unflatten(0, grid.shape[:3]) for part, grid in zip(parts, grids, strict=True)]


def average_pool(grid: Tensor, side: int) -> Tensor:
    """Average a grid [T,H,W,C] over space to [T,side,side,C], adaptively; smaller grids keep their rows and columns."""
    rows, columns = min(side, grid.shape[1]), min(side, grid.shape[2])
    if (rows, columns) == grid.shape[1:3]:
        return grid
    return F.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2), (rows, columns)).permute(0, 2, 3, 1)
