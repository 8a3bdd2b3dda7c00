"""LDPv2 patch by patch (MobileVLM V2, arXiv 2402.03766, section 3.3): the functions of one stream."""

import math

from tests.reference.uniform import averaged
from tests.reference.vectors import Vector, Video, dot


def linear(weight: list[Vector], bias: Vector, one: Vector) -> Vector:
    """A linear layer."""
    return [dot(row, one) + b for row, b in zip(weight, bias, strict=True)]


def gelu(one: Vector) -> Vector:
    """The exact GELU."""
    return [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in one]


def with_neighbours(frame: list[Vector], side: int, kernel: list, bias: Vector) -> list[Vector]:
    """Each token and, channel by channel, a weighted sum of the 3x3 around it; nothing is outside of the frame."""
    found = []
    for i in range(side):
        for j in range(side):
            token = list(frame[i * side + j])
            for channel in range(len(token)):
                token[channel] += bias[channel]
                for a in (-1, 0, 1):
                    for b in (-1, 0, 1):
                        if 0 <= i + a < side and 0 <= j + b < side:
                            neighbour = frame[(i + a) * side + j + b][channel]
                            token[channel] += kernel[channel][0][a + 1][b + 1] * neighbour
            found.append(token)
    return found


def ldpv2(video: Video, size: int, side: int, weights: dict) -> Video:
    """Frames of size x size patches as frames of side x side tokens; `weights` by name, as nested lists."""
    projected = [
        [
            linear(weights["2.weight"], weights["2.bias"], gelu(linear(weights["0.weight"], weights["0.bias"], token)))
            for token in frame
        ]
        for frame in video
    ]
    pooled = averaged(projected, size, size, side, side)
    return [with_neighbours(f, side, weights["convolution.weight"], weights["convolution.bias"]) for f in pooled]
