"""What a reply says: the chosen letter of a multiple-choice question, a number, or the words themselves.

One parser for all tasks, so that entries differ by model and never by parser. A reply that cannot be read is None: it
scores 0 and is counted separately.
"""

import re
import unicodedata
from collections.abc import Sequence

from langdc.data.records import LETTERS

TAG = re.compile(r"</?\w+>")
ANSWER = (
    r"(?:answer|(?:correct|best|right|final)\s+(?:option|choice|letter)|答案|正确选项)(?:\s+to\s+(?:this|the)(?:\s+\w+)?)?"
    r"(?:\s*(?:is|was|would be|should be|must be|are|therefore|thus|clearly|(?:most )?likely|probably|是|为|[:=]|->|→)"
    r"|[^\S\n]*\n)+\s*"
)
CHOOSE = r"(?:\b(?:choose|chose|pick|picked|select|selected|go with|going with)\b|选择|选)\s*"
NOUN = r"(?:(?:the\s+)?(?:option|choice|letter|选项)\s*[:]?\s*)?"
STATED = re.compile(rf"(?:{ANSWER}|{CHOOSE}){NOUN}", re.I)
"""What announces an answer: "Answer: B because ...", "the correct option is (B)", "I would choose B"."""
MENTIONED = re.compile(r"(?:\b(?:option|choice|letter|it is|it's|so|thus|therefore|hence)\b|选项)\s*[:,]?\s*", re.I)
"""What may stand before a letter that is the answer, and also before one that is not."""
RIGHT = (
    r"(?:\s+(?:is|would be|seems(?: to be)?|fits)\b(?:\s+(?:the|clearly|most|very|likely|probably))*"
    r"\s*(?:correct|right|true|best|answer|accurate|appropriate|likely|match|fits?\b|$)|\s*是?正确)"
)
"""What follows a letter that is the answer."""
BAD = re.compile(
    r"\s*(?:is|was|would be|seems|looks|can|could|does|do|has)?\s*(?:clearly|also|therefore)?\s*"
    r"(?:not\b|n't\b|wrong|incorrect|false|unlikely|impossible|ruled out|out\b|不)",
    re.I,
)
"""What follows a letter that is not the answer."""
NEGATED = re.compile(
    r"(?:\b(?:not|isn't|never|neither|nor|without|than|exclude|eliminate|rule out)|不是|不选)"
    r"\s*(?:option|choice)?\s*\W*$",
    re.I,
)
"""What stands before a letter that is not the answer."""
SIGN = (
    r"(?<!\w)-(?=\.?\d)|(?<=\d)[.,:/^-](?=\d)|(?<![\w.])\.(?=\d)"  # of numbers: -5, 3.5, 1:30, 1/2
    r"|(?<=\w)[<>=+](?=\w)|(?<=[a-z])[+#]+(?!\w)"  # x<y, c++
)
"""Punctuation that changes what a text says."""
DROPPED = r"[!-/:-@\[-`{-~。、「」“”…·]"
SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SMALL += [f"{name}teen" for name in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6}
NUMBER_WORDS = {word: value for value, word in enumerate(SMALL)}
NUMBER_WORDS |= {word: 10 * value for value, word in enumerate(TENS, 2)}
DIGITS = re.compile(r"(?:(-?\d+)\s+)?(?<![\d.])(-?\d+)\s*/\s*(\d+)|-?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?", re.I)


def _plain(text: str) -> str:
    """A text in one form of its characters: full-width ones and minus signs as in ASCII, 1,200 as 1200."""
    text = unicodedata.normalize("NFKC", text).translate({0x2212: "-", 0x2018: "'", 0x2019: "'"})
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def normalise(text: str) -> str:
    """Lower case, without extra spaces and punctuation, but for signs of numbers: "(D)." is "d", "-3.5" stays."""
    return " ".join(re.sub(f"({SIGN})|{DROPPED}", lambda found: found[1] or "", _plain(text).lower()).split())


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and tags; numbers with signs, zero to twelve in digits."""
    text = _plain(TAG.sub(" ", without_thinking(text))).lower().replace("'", "")
    found = re.findall(r"(?<![\w.])-?(?:\d+(?:[.:/^-]\d+)*|\.\d+)(?!\w)|\w+(?:(?<=[a-z])[+#]+(?!\w))?", text)
    return [str(SMALL.index(word)) if word in SMALL[:13] else word for word in found]


def without_thinking(text: str) -> str:
    """What a reply says after its <think> part, which a prompt may have begun and which may be cut off."""
    text = re.sub(r"<(think|thinking|reasoning)>.*?</\1>", " ", text, flags=re.S | re.I)
    text = re.split(r"</(?:think|thinking|reasoning)>", text, flags=re.I)[-1]
    return re.sub(r"<(think|thinking|reasoning)>.*", " ", text, flags=re.S | re.I)


def _final(text: str) -> str:
    """What a reply says in the end, without LaTeX and tags, in plain characters."""
    text = without_thinking(text)
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\boxed\s*\{([^{}]*)\}", r"answer: \1 ", text)
    return TAG.sub(" ", _plain(text)).replace("$", " ").strip()


def choice(text: str, options: Sequence[str]) -> str | None:
    """The letter that a reply to a multiple-choice question chose, or None.

    In this order: the last announced letter ("answer: B", "I choose B", "B is correct"), the beginning of the reply,
    a letter after "option" or the like, one marked letter anywhere ("(B)", "B."), one option's words. Letters that are
    said to be wrong do not count. Where two different letters fit equally well, nothing was chosen. "a dog" is the
    option that says so and not a choice of A; "a" alone is A.
    """
    letters, text = LETTERS[: len(options)], _final(text)
    stated = [(found.end(), _at_the_start(text[found.end() :], letters, options)) for found in STATED.finditer(text)]
    right = re.compile(rf"(?<!\w)\(?([{letters}])\)?{RIGHT}")
    stated += [(found.start(), found[1]) for found in right.finditer(text) if not BAD.match(text, found.end(1))]
    announced = [(place, letter) for place, letter in stated if letter and not NEGATED.search(text[:place])]
    if announced:
        return max(announced)[1]
    if (found := _at_the_start(text, letters, options)) is not None:
        return found
    mentions = [m for m in MENTIONED.finditer(text) if not NEGATED.search(text[: m.end()])]
    marks = re.finditer(rf"\(([{letters}])\)|\b([{letters}])[.):]", text)
    mentioned = {_at_the_start(text[m.end() :], letters, options) for m in mentions} - {None}
    marked = {m[1] or m[2] for m in marks if not BAD.match(text, m.end()) and not NEGATED.search(text[: m.start()])}
    for letter in (mentioned, marked):
        if letter:
            return next(iter(letter)) if len(letter) == 1 else None
    return _by_words(text, letters, options)


def _at_the_start(text: str, letters: str, options: Sequence[str]) -> str | None:
    """A letter that begins a text, alone or marked; None if it is said to be wrong or an alternative follows."""
    text, low = text.strip(), letters.lower()
    alone = re.fullmatch(rf"[\W_]*([{letters}{low}])[\W_]*", text)
    if alone:
        return alone[1].upper()
    if normalise(text) in {normalise(option) for option in options}:
        return _by_words(text, letters, options)
    found = re.match(
        rf"[\s*_\"'\[]*(?:\(([{letters}{low}])\)|([{letters}{low}])[.):\]]|([{letters}])(?=[\s,;*。]|$))", text
    )
    if found is None or (
        found[3] == "A"
        and re.match(r"\W*A\s+[a-z]", text)
        and not BAD.match(text, found.end())
        and not re.match(r"\s+(?:is|because|as|since|or|and)\b", text[found.end() :])
    ):  # "A dog runs" begins with an article
        return None
    letter = (found[1] or found[2] or found[3]).upper()
    if BAD.match(text, found.end()):
        return None
    other = re.match(rf"\W*(?:or|and|/|,)\W*\(?([{letters}])\b", text[found.end() :])
    return letter if other is None or other[1] == letter else None


def _by_words(text: str, letters: str, options: Sequence[str]) -> str | None:
    """The option whose words are the reply, or the only one whose words are in it."""
    reply = f" {normalise(text)} "
    known = {letter: option for letter, option in zip(letters, map(normalise, options), strict=True) if option}
    whole = [letter for letter, option in known.items() if reply.strip() == option]
    within = [letter for letter, option in known.items() if f" {option} " in reply]
    # an option inside a longer one that is there, too, was not meant
    longest = [x for x in within if not any(known[x] in known[other] for other in within if other != x)]
    return next((found[0] for found in (whole, longest) if len(found) == 1), None)


def number(text: str) -> float | None:
    """The number that a reply says, in digits, as a fraction or in words; what is announced as the answer first."""
    text = _final(text)
    parts = [*[text[found.end() :] for found in STATED.finditer(text)][::-1], text]
    return next((value for part in parts if (value := _first_number(part)) is not None), None)


def _first_number(text: str) -> float | None:
    found = DIGITS.search(text)
    if found is not None:
        if found[3] is None:
            return float(found[0])
        whole, part = float(found[1] or 0), float(found[2]) / float(found[3]) if float(found[3]) else None
        return None if part is None else whole + (-part if whole < 0 else part)
    said = re.findall(r"[a-z]+", text.lower())
    begins = {*NUMBER_WORDS, "half", "dozen", "hundred"}
    return next((_in_words(said[n:]) for n, word in enumerate(said) if word in begins), None)


def _in_words(said: Sequence[str]) -> float:
    """The number at the beginning: "one hundred and five", "twenty five", "two and a half"."""
    total = current = 0.0
    for place, word in enumerate(said):
        if word in NUMBER_WORDS:
            current += NUMBER_WORDS[word]
        elif word in SCALES:
            current = max(current, 1) * SCALES[word]
            if SCALES[word] > 100:
                total, current = total + current, 0.0
        elif word == "half":
            return total + current + 0.5
        elif word == "dozen":
            return 12 * max(current, 1)
        elif word not in ("and", "a") or place + 1 == len(said):
            break
    return total + current
