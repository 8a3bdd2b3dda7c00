"""What replies say, read in one place."""

import pytest

from langdc.evaluation.answers import choice, number

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
        ("there are two chairs", 2.0), ("1e3", 1000.0), ("none that I see", None), ("", None),
    ],
)  # fmt: skip
def test_numbers(text: str, found: float | None) -> None:
    assert number(text) == found
