"""Adaptive keyframe sampling part by part (arXiv 2502.21271), with every share of the budget kept."""


def aks(scores: list[float], budget: int, threshold: float, depth: int) -> list[int]:
    """The chosen places, ascending."""
    low, high = min(scores), max(scores)
    scaled = [(score - low) / (high - low) if high > low else 0.0 for score in scores]
    waiting, kept = [(list(range(len(scores))), budget, 0)], []
    while waiting:
        places, count, level = waiting.pop()
        best = sorted(places, key=lambda place: (-scaled[place], place))
        top = [scaled[place] for place in best[:budget]]
        apart = sum(top) / len(top) - sum(scaled[place] for place in places) / len(places)
        if apart > threshold or level == depth or count == 1:
            kept += best[:count]
        else:
            half = len(places) // 2
            waiting.append((places[:half], count // 2, level + 1))
            waiting.append((places[half:], count - count // 2, level + 1))
    return sorted(kept)
