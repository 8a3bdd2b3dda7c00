"""Semantic density: how much a segment has to say, and targets whose length and content follow it.

A segment is annotated with cues of four kinds. Its density is their number; its target caption says those cues and
nothing else, so that a rich scene gets a long target and a still one a short one.
Source: LangDC (arXiv 2509.00969), section 4.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import spearmanr

KINDS = ("subjects", "attributes", "actions", "background")


@dataclass(frozen=True)
class Cues:
    """What is to be seen in a segment, by kind; each cue is a word or phrase."""

    subjects: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    background: tuple[str, ...] = ()

    def all(self) -> list[str]:
        """Every cue, in order of kind."""
        return [cue for kind in KINDS for cue in getattr(self, kind)]

    @property
    def density(self) -> int:
        """The number of cues."""
        return len(self.all())


def target_caption(cues: Cues, separator: str = " ; ", most: int | None = None) -> str:
    """Write the supervision text of a segment: its cues, subjects first, each said once; at most `most` of them.

    An empty segment gives an empty text: the captioner learns to stop at once.
    """
    said = list(dict.fromkeys(cue.strip() for cue in cues.all() if cue.strip()))
    return separator.join(said[:most])


def cue_recall(caption: str, cues: Cues) -> float:
    """The share of cues that a caption mentions (as whole words, case ignored); 1 where there are none."""
    padded = f" {' '.join(caption.lower().split())} "
    wanted = [f" {' '.join(cue.lower().split())} " for cue in cues.all()]
    return sum(cue in padded for cue in wanted) / len(wanted) if wanted else 1.0


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
