"""A perceiver resampler segment by segment (Flamingo, arXiv 2204.14198, section 3.1.1), query by query."""

import math

from tests.reference.ldpv2 import gelu, linear
from tests.reference.vectors import Vector, dot


def norm(weights: dict, name: str, one: Vector) -> Vector:
    """Layer norm."""
    middle = sum(one) / len(one)
    spread = math.sqrt(sum((x - middle) ** 2 for x in one) / len(one) + 1e-5)
    scaled = [(x - middle) / spread for x in one]
    return [w * x + b for w, x, b in zip(weights[f"{name}.weight"], scaled, weights[f"{name}.bias"], strict=True)]


def layer(weights: dict, name: str, one: Vector) -> Vector:
    """A linear layer by its name."""
    return linear(weights[f"{name}.weight"], weights[f"{name}.bias"], one)


def attended(weights: dict, block: str, asking: list[Vector], seen: list[Vector], heads: int) -> list[Vector]:
    """What each query gets from all it sees."""
    width = len(asking[0])
    query = [layer(weights, f"{block}.attention.query", one) for one in asking]
    both = [layer(weights, f"{block}.attention.key_value", one) for one in seen]
    key, value = [one[:width] for one in both], [one[width:] for one in both]
    part = width // heads
    found = []
    for q in query:
        answer: Vector = []
        for start in range(0, width, part):
            own = slice(start, start + part)
            likeness = [math.exp(dot(q[own], k[own]) / math.sqrt(part)) for k in key]
            answer += [
                sum(w * v[c] for w, v in zip(likeness, value, strict=True)) / sum(likeness)
                for c in range(start, start + part)
            ]
        found.append(layer(weights, f"{block}.attention.out_proj", answer))
    return found


def resampler(streams: dict[str, list], weights: dict, depth: int, heads: int) -> list[Vector]:
    """The tokens of one segment; `streams` by name as [frames][rows][columns] of vectors, `weights` by name."""
    patches = []
    for number, (name, grid) in enumerate(streams.items()):
        for t, frame in enumerate(grid):
            for i, row in enumerate(frame):
                for j, patch in enumerate(row):
                    where = (
                        weights[f"{n}.weight"][k]
                        for n, k in (("row", i), ("column", j), ("stream", number), ("frame", t))
                    )
                    patches.append(
                        [sum(parts) for parts in zip(layer(weights, f"projectors.{name}", patch), *where, strict=True)]
                    )
    found = weights["queries.weight"]
    for b in range(depth):
        block = f"blocks.{b}"
        asking = [norm(weights, f"{block}.query_norm", one) for one in found]
        seen = [norm(weights, f"{block}.patch_norm", one) for one in patches] + asking
        found = [plus(a, b) for a, b in zip(found, attended(weights, block, asking, seen, heads), strict=True)]
        found = [plus(one, mlp(weights, block, one)) for one in found]
    return [layer(weights, "out.1", norm(weights, "out.0", one)) for one in found]


def plus(one: Vector, other: Vector) -> Vector:
    """The sum."""
    return [a + b for a, b in zip(one, other, strict=True)]


def mlp(weights: dict, block: str, one: Vector) -> Vector:
    """Norm, up, GELU, down."""
    wide = layer(weights, f"{block}.mlp.1", norm(weights, f"{block}.mlp.0", one))
    return layer(weights, f"{block}.mlp.3", gelu(wide))
