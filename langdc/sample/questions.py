"""Questions with one-word answers about a sample video, each with exactly one right answer."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from langdc.sample.scenes import MOTIONS, SHAPES, Segment

LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question about a video, its one right answer, and its category (a key of `KINDS`)."""

    kind: str
    text: str
    answer: str


def _pick(rng: np.random.Generator, items: list):
    return items[int(rng.integers(len(items)))] if items else None


def _count(rng: np.random.Generator, video: list[Segment]) -> Question:
    number = int(rng.integers(len(video)))
    return Question("count", f"how many objects are in segment {number + 1} ?", str(len(video[number])))


def _of_colour(field: str, text: str, rng: np.random.Generator, video: list[Segment]) -> Question | None:
    """The shape or motion of an object whose colour occurs once in the video, so that the colour identifies it."""
    things = [thing for segment in video for thing in segment]
    seen = Counter(thing.colour for thing in things)
    thing = _pick(rng, [thing for thing in things if seen[thing.colour] == 1])
    return thing and Question(field, text.format(thing.colour), getattr(thing, field))


_shape = partial(_of_colour, "shape", "what shape is the {} object ?")
_motion = partial(_of_colour, "motion", "how does the {} object move ?")


def _segment(rng: np.random.Generator, video: list[Segment]) -> Question | None:
    where = [(f"{t.colour} {t.shape}", number) for number, things in enumerate(video, 1) for t in things]
    seen = Counter(name for name, _ in where)
    found = _pick(rng, [(name, number) for name, number in where if seen[name] == 1])
    return found and Question("segment", f"which segment shows the {found[0]} ?", str(found[1]))


def _most(rng: np.random.Generator, video: list[Segment]) -> Question | None:
    """Not asked where two segments hold the same number."""
    sizes = [len(things) for things in video]
    if sizes.count(max(sizes)) > 1:
        return None
    return Question("most", "which segment has the most objects ?", str(sizes.index(max(sizes)) + 1))


def _colour_of(field: str, verb: str, rng: np.random.Generator, video: list[Segment]) -> Question | None:
    """The colour of the only object of a shape or motion in a segment: a look-up against the order of the caption."""
    candidates = []
    for number, things in enumerate(video, 1):
        seen = Counter(getattr(t, field) for t in things)
        candidates += [(number, t) for t in things if seen[getattr(t, field)] == 1]
    chosen = _pick(rng, candidates)
    if chosen is None:
        return None
    number, thing = chosen
    text = f"what colour {verb} {getattr(thing, field)} in segment {number} ?"
    return Question(f"colour_of_{field}", text, thing.colour)


def _choice(rng: np.random.Generator, video: list[Segment]) -> Question | None:
    """A shape or motion question with four lettered options; the answer is the letter."""
    base = (_shape, _motion)[int(rng.integers(2))](rng, video)
    if base is None:
        return None
    wrong = [w for w in (SHAPES if base.kind == "shape" else MOTIONS) if w != base.answer]
    options = [base.answer, *rng.permutation(wrong)[:3]]
    order = rng.permutation(4)
    listed = " ".join(f"({LETTERS[i]}) {options[j]}" for i, j in enumerate(order))
    return Question("choice", f"{base.text} {listed}", LETTERS[list(order).index(0)])


TARGET_KINDS = ("count", "shape", "motion", "segment", "most")
KINDS: dict[str, Callable[[np.random.Generator, list[Segment]], Question | None]] = {
    "count": _count,
    "shape": _shape,
    "motion": _motion,
    "segment": _segment,
    "most": _most,
    "colour_of_shape": partial(_colour_of, "shape", "is the"),
    "colour_of_motion": partial(_colour_of, "motion", "has motion"),
    "choice": _choice,
}


def ask_all(rng: np.random.Generator, video: list[Segment], kinds: tuple[str, ...] = tuple(KINDS)) -> list[Question]:
    """One question of every category that the video allows, in the order of `kinds`."""
    asked = (KINDS[kind](rng, video) for kind in kinds)
    return [question for question in asked if question is not None]
