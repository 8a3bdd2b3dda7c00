"""Semantic density: how much a segment has to say, and targets whose length and content follow it.

A segment is annotated with cues of four kinds. Its density is their number; its target caption says those cues and
nothing else, so that a rich scene gets a long target and a still one a short one.
Source: LangDC (arXiv 2509.00969), section 4.1.
"""

from collections.abc import Sequence
from typing import Any

from scipy.stats import spearmanr

from langdc.data.records import SegmentRecord


def cues_of(segment: SegmentRecord) -> list[str]:
    """Every cue of a segment: subjects, attributes, actions, background."""
    return [*segment.subjects, *segment.attributes, *segment.actions, *segment.background]


def densities(segments: Sequence[SegmentRecord]) -> list[int]:
    """The density of each segment of a record: as it states, else the number of its cues.

    Empty if no segment states either: then nobody has looked, and 0 would be a claim.
    """
    known = any(segment.density is not None or cues_of(segment) for segment in segments)
    found = [len(cues_of(segment)) if segment.density is None else segment.density for segment in segments]
    return found if known else []


def target_caption(segment: SegmentRecord, separator: str = " ; ", most: int | None = None) -> str:
    """Write the supervision text of a segment: its cues, subjects first, each said once; at most `most` of them.

    An empty segment gives an empty text: the captioner learns to stop at once.
    """
    said = list(dict.fromkeys(cue.strip() for cue in cues_of(segment) if cue.strip()))
    return separator.join(said[:most])


def cue_recall(caption: str, segment: SegmentRecord) -> float | None:
    """The share of a segment's cues that a caption mentions (as whole words, case ignored); None where it has none."""
    padded = f" {' '.join(caption.lower().split())} "
    wanted = [f" {' '.join(cue.lower().split())} " for cue in cues_of(segment)]
    return sum(cue in padded for cue in wanted) / len(wanted) if wanted else None


def density_correlation(densities: Sequence[float], tokens: Sequence[float]) -> float:
    """Spearman's rank correlation of densities and token counts; NaN if either never varies.

    Raises ValueError unless both have the same length of at least 3.
    """
    if len(densities) != len(tokens) or len(tokens) < 3:
        raise ValueError(
            f"{len(densities)} densities and {len(tokens)} token counts; give 3 or more of each, in pairs."
        )
    if len(set(densities)) == 1 or len(set(tokens)) == 1:
        return float("nan")
    found: Any = spearmanr(densities, tokens)
    return float(found.statistic)
