"""Semantic density: how much a segment has to say, as the number of its cues of four categories.

Source: LangDC (arXiv 2509.00969), section 4.1.
"""

from collections.abc import Sequence
from typing import Any

from scipy.stats import spearmanr

from langdc.data.records import SegmentRecord


def _cues_of(segment: SegmentRecord) -> list[str]:
    """Every cue of a segment: subjects, attributes, actions, background."""
    return [*segment.subjects, *segment.attributes, *segment.actions, *segment.background]


def densities(segments: Sequence[SegmentRecord]) -> list[int]:
    """Each segment's density: as stated, else its number of cues; empty if none is annotated, as 0 would be wrong."""
    known = any(segment.density is not None or _cues_of(segment) for segment in segments)
    counts = [len(_cues_of(segment)) if segment.density is None else segment.density for segment in segments]
    return counts if known else []


def cue_recall(caption: str, segment: SegmentRecord) -> float | None:
    """The share of a segment's cues that a caption mentions (as whole words, case ignored); None where it has none."""
    padded = f" {' '.join(caption.lower().split())} "
    wanted = [f" {' '.join(cue.lower().split())} " for cue in _cues_of(segment)]
    return sum(cue in padded for cue in wanted) / len(wanted) if wanted else None


def density_correlation(densities: Sequence[float], tokens: Sequence[float]) -> float:
    """Spearman's rank correlation of 3 or more pairs (else ValueError); NaN if either side never varies."""
    if len(densities) != len(tokens) or len(tokens) < 3:
        raise ValueError(
            f"{len(densities)} densities and {len(tokens)} token counts; give 3 or more of each, in pairs."
        )
    if len(set(densities)) == 1 or len(set(tokens)) == 1:
        return float("nan")
    result: Any = spearmanr(densities, tokens)
    return float(result.statistic)
