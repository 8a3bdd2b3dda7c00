"""What a reply says: the chosen letter of a multiple-choice question, a number, or the words themselves.

One place for all tasks, so that rows differ by model and never by parser. What cannot be read is None, which scores 0
and is counted apart.
"""

import re
import string
from collections.abc import Sequence

from langdc.data.records import LETTERS

STATED = re.compile(
    r"\b(?:final |correct |best )?(?:answer|option|choice)\b(?: is| would be)?\s*[:=]?\s*(.+)", re.I | re.S
)
"""Where a reply announces its answer: "Answer: B because ...", "the correct option is (B)"."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", re.I)
TAG = re.compile(r"</?\w+>")
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def normalise(text: str) -> str:
    """Lower case, without punctuation and extra spaces: "(D)." is "d"."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def choice(text: str, options: Sequence[str]) -> str | None:
    """The letter that a reply to a multiple-choice question chose, or None.

    In this order: what follows "answer:" or the like, the beginning of the reply, one marked letter anywhere ("(B)",
    "B."), one option's words. Where two different letters fit equally well, nothing was chosen. "a dog" is the option
    that says so and no choice of A; "a" alone is A.
    """
    letters = LETTERS[: len(options)]
    text = TAG.sub(" ", text).strip()
    stated = STATED.search(text)
    for part in ([stated[1]] if stated else []) + [text]:
        found = _at_the_start(part.strip(), letters, options)
        if found is not None:
            return found
    marked = set(re.findall(rf"\(([{letters}])\)|\b([{letters}])[.):]", text))
    chosen = {one or other for one, other in marked}
    if len(chosen) == 1:
        return chosen.pop()
    return None if chosen else _by_words(text, letters, options)


def _at_the_start(text: str, letters: str, options: Sequence[str]) -> str | None:
    """A letter that stands alone, or marked, before anything else; unless another one follows as an alternative."""
    low = letters.lower()
    alone = re.fullmatch(rf"[\W_]*([{letters}{low}])[\W_]*", text)
    if alone:
        return alone[1].upper()
    if normalise(text) in {normalise(option) for option in options}:
        return _by_words(text, letters, options)
    found = re.match(
        rf"[\s*_\"'\[]*(?:\(([{letters}{low}])\)|([{letters}{low}])[.):\]]|([{letters}])(?=[\s,;*]))", text
    )
    if found is None or (found[3] == "A" and re.match(r"\W*A\s+[a-z]", text)):  # "A dog runs" begins with an article
        return None
    letter = (found[1] or found[2] or found[3]).upper()
    other = re.match(rf"\W*(?:or|and|/|,)\W*\(?([{letters}])\b", text[found.end() :])
    return letter if other is None or other[1] == letter else None


def _by_words(text: str, letters: str, options: Sequence[str]) -> str | None:
    """The option whose words are the reply, or the only one whose words are in it."""
    said = f" {normalise(text)} "
    plain = [normalise(option) for option in options]
    whole = [letter for letter, option in zip(letters, plain, strict=True) if option and said.strip() == option]
    within = [letter for letter, option in zip(letters, plain, strict=True) if option and f" {option} " in said]
    # an option inside a longer one that is there, too, was not meant
    longest = [
        letter
        for letter in within
        if not any(plain[letters.index(letter)] in plain[letters.index(o)] for o in within if o != letter)
    ]
    for candidates in (whole, longest):
        if len(candidates) == 1:
            return candidates[0]
    return None


def number(text: str) -> float | None:
    """The number that a reply says, in digits or as a word up to twelve; what follows "answer:" first. Or None."""
    stated = STATED.search(text)
    for part in ([stated[1]] if stated else []) + [text]:
        found = NUMBER.search(part.replace(",", ""))
        if found is not None:
            return float(found[0])
        word = next((word for word in normalise(part).split() if word in WORDS), None)
        if word is not None:
            return float(WORDS.index(word))
    return None
