"""What replies say, read in one place."""

import pytest

from langdc.evaluate.answers import choice, normalise, number

ANIMALS = ["a cat", "a dog", "A horse", "two dogs"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(A)", "A"), ("A.", "A"), ("a", "A"), ("A", "A"), (" b ", "B"), ("**C**", "C"), ("D)", "D"), ("B: a dog", "B"),
        ("Answer: B because the dog barks", "B"), ("The answer is (C).", "C"), ("the correct option is D", "D"),
        ("answer: a dog", "B"), ("a dog", "B"), ("A dog.", "B"), ("A horse", "C"), ("two dogs", "D"),
        ("I see two dogs.", "D"), ("It is a cat", "A"), ("I think it is (B), a dog", "B"), ("B\n", "B"),
        ("B, I think", "B"),
        ("The best answer is:\n\nA", "A"), ("<answer>C</answer>", "C"),
        ("", None), ("   ", None), ("A or B", None), ("A, B", None), ("(A) and (B)", None), ("E", None),
        ("a cat and a dog", None), ("no idea", None), ("A bird flies", None), ("?", None),
    ],
)  # fmt: skip
def test_letters(text: str, letter: str | None) -> None:
    assert choice(text, ANIMALS) == letter


SCENES = ["a red car", "a blue car", "a dog runs", "a man sits"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Option C is wrong because there is no dog. The correct answer is B.", "B"),
        ("<think>Option A says red car. It could be (A). But no.</think>\n\nB", "B"),
        ("Option A? It could be (A). But no.</think>\n\nThe answer is B", "B"), ("<think>It could be (A)", None),
        ("The answer is option B", "B"), ("The correct answer is choice C", "C"), ("Answer: Option C", "C"),
        ("The answer is letter D", "D"), ("I would choose B", "B"), ("So D is correct.", "D"),
        ("Based on the video, D is the best fit", "D"), (r"\boxed{B}", "B"),
        (r"The final answer is $\boxed{\text{B}}$.", "B"),
        ("答案：B", "B"), ("正确答案为（C）。", "C"), ("我选B", "B"), ("The answer is not A. It is B.", "B"),
        ("A is wrong. B is right.", "B"), ("The answer is (B), not (C).", "B"), ("**Answer:** B", "B"),
        ("The answer is B or C", None), ("I first thought the answer is A, but the answer is B", "B"),
        ("(A) is incorrect; (D) fits", "D"), ("A isn't right, so B", "B"), ("Final Answer\nB", "B"),
        ("The answer to the question is therefore C", "C"), ("The answer is a dog runs", "C"),
        ("I think the answer is A because the car is red", "A"),
        ("Therefore, the correct answer is:\n\nB. a blue car", "B"),
        ("The answer is B. Option A is wrong.", "B"), ("B is correct, A is not", "B"), ("I'd go with D", "D"),
    ],
)  # fmt: skip
def test_letters_in_sentences(text: str, letter: str | None) -> None:
    assert choice(text, SCENES) == letter


def test_options_that_are_letters_or_numbers() -> None:
    assert choice("3", ["1", "2", "3"]) == "C"
    assert choice("B", ["B", "A"]) == "B"  # a letter alone is the letter, whatever the options say
    assert choice("D", ["yes", "no"]) is None


def test_an_option_inside_a_longer_one_was_not_meant() -> None:
    assert choice("he opens the red door", ["opens the door", "opens the red door", "the red door"]) == "B"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3", 3.0), ("3.5 meters", 3.5), ("about 1,200", 1200.0), ("-2", -2.0), ("three", 3.0),
        ("Answer: 7, not 8", 7.0),
        ("one hundred", 100.0), ("twenty", 20.0), ("1/2", 0.5), ("twenty-five", 25.0), ("two and a half", 2.5),
        ("one hundred and five", 105.0), ("three thousand two hundred", 3200.0), ("1 1/2", 1.5), ("−5", -5.0),
        (r"\boxed{\frac{1}{2}}", 0.5), ("<think>3 or 4</think> four", 4.0), ("a dozen", 12.0), ("1/0", None),
        ("there are two chairs", 2.0), ("1e3", 1000.0), ("none that I see", None), ("", None),
    ],
)  # fmt: skip
def test_numbers(text: str, found: float | None) -> None:
    assert number(text) == found


@pytest.mark.parametrize(
    ("one", "other"), [("3.5", "35"), ("1:30", "130"), ("-5", "5"), ("1/2", "12"), ("c++", "c"), ("x<y", "x>y")]
)
def test_signs_that_matter_are_compared(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("(D).", "d"), ("1,200", "1200"), ("−5", "-5"), ("5.", "5"), ("t-shirt", "tshirt"), ("５", "5")]
)
def test_punctuation_that_does_not_matter_is_dropped(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)
