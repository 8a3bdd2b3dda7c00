"""Questions with one-word answers about a sample video, each with exactly one right answer."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from langdc.sample.scenes import FRAMES_PER_SEGMENT, MOTIONS, SHAPES, SIZE, Segment, Thing

LETTERS = "ABCD"
MARGIN = 4  # pixels between an object's centre and the middle, where its half is asked for
UNLIKE = 2  # pixels between two radii of which the larger is asked for


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


def _half(axis: int, words: tuple[str, str], rng: np.random.Generator, video: list[Segment]) -> Question | None:
    """In which half an object stays whose colour occurs once in the video."""
    things = [thing for segment in video for thing in segment]
    seen = Counter(thing.colour for thing in things)
    found = [(t, side) for t in things if seen[t.colour] == 1 and (side := _side(t, axis)) is not None]
    chosen = _pick(rng, found)
    text = f"is the {{}} object {words[0]} or {words[1]} ?"
    return chosen and Question("_".join(words), text.format(chosen[0].colour), words[chosen[1]])


def _side(thing: Thing, axis: int) -> int | None:
    """0 or 1 for the half in which an object's centre stays, clearly; None where there is none."""
    places = [thing.centre(frame)[axis] - (SIZE - 1) / 2 for frame in range(FRAMES_PER_SEGMENT)]
    if max(places) <= -MARGIN:
        return 0
    return 1 if min(places) >= MARGIN else None


def _pair(
    kind: str, field: str, text: str, least: int, rng: np.random.Generator, video: list[Segment]
) -> Question | None:
    """Whether of two objects of a segment the one named first has more of a field, where they differ by `least`."""
    pairs = [(n, a, b) for n, things in enumerate(video, 1) for a in things for b in things]
    chosen = _pick(rng, [(n, a, b) for n, a, b in pairs if abs(getattr(a, field) - getattr(b, field)) >= least])
    if chosen is None:
        return None
    number, one, other = chosen
    more = getattr(one, field) > getattr(other, field)
    return Question(kind, text.format(number, one.colour, other.colour), "yes" if more else "no")


def _background(rng: np.random.Generator, video: list[Segment]) -> Question:
    number = int(rng.integers(len(video)))
    return Question("background", f"what is the background of segment {number + 1} ?", video[number].background)


GROUPS = {
    "said": ("count", "shape", "motion", "segment", "most"),
    "unsaid": ("left_right", "upper_lower", "larger", "background", "first"),
}
"""The kinds that results are about: what the words of captions answer, and what no caption says."""
TARGET_KINDS = tuple(kind for group in GROUPS.values() for kind in group)
KINDS: dict[str, Callable[[np.random.Generator, list[Segment]], Question | None]] = {
    "count": _count,
    "shape": _shape,
    "motion": _motion,
    "segment": _segment,
    "most": _most,
    "colour_of_shape": partial(_colour_of, "shape", "is the"),
    "colour_of_motion": partial(_colour_of, "motion", "has motion"),
    "choice": _choice,
    "left_right": partial(_half, 0, ("left", "right")),
    "upper_lower": partial(_half, 1, ("upper", "lower")),
    "larger": partial(_pair, "larger", "radius", "in segment {} is {} larger than {} ?", UNLIKE),
    "background": _background,
    "first": partial(_pair, "first", "shown", "in segment {} does {} appear before {} ?", 1),
}


def ask_all(rng: np.random.Generator, video: list[Segment]) -> list[Question]:
    """One question of every category that the video allows, in the order of `KINDS`."""
    asked = (ask(rng, video) for ask in KINDS.values())
    return [question for question in asked if question is not None]
