"""DivPrune token by token: the greedy max-min choice (arXiv 2503.02175)."""

from tests.reference.vectors import Vector, cosine


def divprune(tokens: list[Vector], count: int, again: bool = False) -> list[int]:
    """The tokens that are chosen, in their order; of equally far ones the earlier. `again`: also chosen ones."""
    apart = [[1 - cosine(one, other) for other in tokens] for one in tokens]
    chosen: list[int] = []
    for _ in range(count):
        far = {}
        for i in range(len(tokens)):
            others = chosen or [j for j in range(len(tokens)) if j != i]
            if again or i not in chosen:
                far[i] = min((apart[j][i] for j in others), default=0.0)
        chosen.append(max(far, key=lambda i: (far[i], -i)))
    return chosen
