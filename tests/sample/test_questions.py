"""Every question has one right answer, found here again by a slow, separate reading of its text."""

import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from examples.sample_world.tokenizer import vocabulary
from langdc.sample.questions import KINDS, TARGET_KINDS, Question, ask_all
from langdc.sample.scenes import COLOURS, MOTIONS, SHAPES, Segment, Thing, caption, sample_video

VIDEOS = [sample_video(np.random.default_rng([seed, 2])) for seed in range(250)]
ASKED = [(video, q) for seed, video in enumerate(VIDEOS) for q in ask_all(np.random.default_rng([seed, 3]), video)]
LIKELY = {
    "count": "01234",
    "shape": SHAPES,
    "motion": MOTIONS,
    "segment": "1234",
    "most": "1234",
    "colour_of_shape": COLOURS,
    "colour_of_motion": COLOURS,
    "choice": "ABCD",
}


def _right(video: list[Segment], text: str) -> list[str]:
    """All right answers, one entry per object (or segment) that makes it right."""
    words = text.split()
    everything = [(number, thing) for number, segment in enumerate(video, 1) for thing in segment]
    if "(A)" in words:
        options = dict(re.findall(r"\(([A-D])\) (\w+)", text))
        assert len(set(options.values())) == len(options) == 4
        right = _right(video, text.partition(" (A)")[0])
        return [letter for letter, answer in product(options, right) if options[letter] == answer]
    if text.startswith("how many objects are in segment"):
        return [str(sum(number == int(words[6]) for number, _ in everything))]
    if text.startswith("what shape is the"):
        return [thing.shape for _, thing in everything if thing.colour == words[4]]
    if text.startswith("how does the"):
        return [thing.motion for _, thing in everything if thing.colour == words[3]]
    if text.startswith("which segment shows the"):
        return [str(number) for number, thing in everything if [thing.colour, thing.shape] == words[4:6]]
    if text == "which segment has the most objects ?":
        sizes = {number: len(segment) for number, segment in enumerate(video, 1)}
        return [str(number) for number in sizes if sizes[number] == max(sizes.values())]
    field, wanted, where = re.fullmatch(r"what colour (is the|has motion) (\w+) in segment (\d) \?", text).groups()
    name = "shape" if field == "is the" else "motion"
    return [t.colour for number, t in everything if number == int(where) and getattr(t, name) == wanted]


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_the_only_right_one(kind: str) -> None:
    questions = [(video, q) for video, q in ASKED if q.kind == kind]
    assert len(questions) > 100
    for video, question in questions:
        assert _right(video, question.text) == [question.answer], question


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_occurs(kind: str) -> None:
    answers = Counter(q.answer for _, q in ASKED if q.kind == kind)
    assert set(answers) == set(LIKELY[kind])


def test_no_question_where_the_answer_would_be_ambiguous() -> None:
    rng = np.random.default_rng(0)
    twice = [(Thing("red", "ring", "up", 30, 50),), (Thing("red", "cross", "up", 30, 50),), (), ()]
    assert KINDS["shape"](rng, twice) is None
    assert KINDS["most"](rng, twice) is None
    assert {q.kind for q in ask_all(rng, twice)} == {"count", "segment", "colour_of_shape", "colour_of_motion"}
    assert [q.kind for q in ask_all(rng, [(), (), (), ()])] == ["count"]


def test_kinds_can_be_chosen_and_seeds_repeat() -> None:
    video = VIDEOS[0]
    asked = ask_all(np.random.default_rng(1), video, TARGET_KINDS)
    assert asked == ask_all(np.random.default_rng(1), video, TARGET_KINDS)
    assert all(isinstance(q, Question) and q.kind in TARGET_KINDS for q in asked)


def test_vocabulary_covers_all_that_is_said() -> None:
    known = set(vocabulary())
    said = [f"{q.text} {q.answer}" for _, q in ASKED]
    said += [caption(segment, motions) for video in VIDEOS for segment in video for motions in (True, False)]
    words = {word for text in said for word in re.findall(r"\w+|[^\w\s]", text)}
    assert words <= known
