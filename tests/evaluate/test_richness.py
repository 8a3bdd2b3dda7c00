"""Motion and edge entropy are what their formulas say, segment by segment."""

import math

import pytest
import torch

from langdc.evaluate.richness import LEVELS, SIDE, STRONGEST, richness
from langdc.types import Frames


def _frames(pixels: torch.Tensor) -> Frames:
    return Frames(pixels.to(torch.uint8), torch.arange(len(pixels)) / 2)


def _grey(*levels: int, height: int = 8, width: int = 10) -> torch.Tensor:
    return torch.stack([torch.full((3, height, width), level) for level in levels])


def test_motion_counts_the_step_into_a_segment_but_none_before_the_first():
    found = richness(_frames(_grey(10, 14, 30, 30, 130)), 2)
    assert found["motion"] == [4.0, (16 + 0) / 2, 100.0]
    assert found["edges"] == [0.0, 0.0, 0.0]


def test_an_image_does_not_move():
    assert richness(_frames(_grey(7)), 4) == {"motion": [0.0], "edges": [0.0]}


def test_edge_entropy_by_loops():
    grey = torch.randint(0, 256, (3, 6, 7), generator=torch.Generator().manual_seed(0)).float()
    edges = richness(_frames(grey[:, None].expand(-1, 3, -1, -1)), 1)["edges"]
    for frame, found in zip(grey, edges, strict=True):
        counts: dict[int, int] = {}
        for i in range(5):
            for j in range(6):
                steep = math.hypot(frame[i, j + 1] - frame[i, j], frame[i + 1, j] - frame[i, j])
                level = min(int(steep * LEVELS / STRONGEST), LEVELS - 1)
                counts[level] = counts.get(level, 0) + 1
        total = sum(counts.values())
        expected = -sum(n / total * math.log2(n / total) for n in counts.values())
        assert found == round(expected, 4)


def test_noise_has_more_edges_than_a_slope_and_a_slope_more_motion_when_it_moves():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (1, 3, 64, 64), generator=generator).expand(4, -1, -1, -1)
    slope = torch.arange(64).expand(3, 64, 64) * 3
    moving = torch.stack([slope.roll(8 * t, 2) for t in range(4)])
    found = richness(_frames(torch.cat([noise, moving])), 4)
    assert found["edges"][0] > found["edges"][1] + 1
    assert found["motion"][0] == 0 and found["motion"][1] > 10


def test_resolution_hardly_matters_beyond_the_size_it_is_looked_at():
    coarse = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    fine = coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)
    one, other = richness(_frames(coarse), 1), richness(_frames(fine), 1)
    assert other["motion"] == pytest.approx(one["motion"], abs=1e-3)
    assert other["edges"] == pytest.approx(one["edges"], abs=1e-3)
