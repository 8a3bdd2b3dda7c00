"""What a reply says: the chosen letter of a multiple-choice question, a number, or the words themselves.

One parser for all tasks, so that entries differ by model and never by parser. A reply that cannot be read is None: it
scores 0 and is counted separately.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from langdc.data.records import LETTERS

TAG = re.compile(r"</?\w+>")
OPENED, CLOSED = (
    rf"(?:<{slash}(?:seed:)?(?:think|thinking|thoughts?|reasoning|analysis|scratchpad)>"
    rf"|[\[◁]{slash}think[\]▷]|<\|{word}_of_thought\|>)"
    for slash, word in (("", "begin"), ("/", "end"))
)
WORD = r"[^\W\u3040-\u9fff\uac00-\ud7af]"  # a letter or digit of a script that puts spaces between words
MARKS = r"[ *_\"'`]*"
NOUN = r"(?:(?:the )?(?:\b(?:options?|choice|letter)\b|选项)\s*:?\s*)?"
STATED = re.compile(
    r"(?i)(?:(?:\b(?:answers?|ans|correct|(?:correct|best|right|final|closest|(?:most )?(?:accurate|appropriate|likely"
    r"|suitable|fitting)|my|the) (?:option|choice|pick|letter|one|match|fit|description))\b|答案|正确选项|答え|정답)"
    r"(?:(?!\b[A-HJ-Z]\b)[^.\n:=?!]){0,40}?"  # "to this question"
    r"(?: ?(?:\b(?:is|was|be|are)\b|是|为|[:=→➜⇒\n]|->|=>|[-\u2013] |[\"']:))+ ?"
    r"(?:(?:\b(?:clearly|definitely|indeed|therefore|thus|(?:most )?likely|probably|only)\b|\.\.\.|…|,)\s*)*"
    r"|(?:\b(?:choos(?:e|ing)|chose|pick(?:ing|ed)?|select(?:ing|ed)?|opt for|go(?:ing)? (?:with|for)|say|guess|think"
    r"|believe|conclude)\b(?: that\b)?(?: (?:it's|it is|it must be)\b)?|选择|选)[\s:]*)"
    rf"{NOUN}{MARKS}"
)
"""What announces an answer: "Answer: B because ...", "the correct option is (B)", "I would choose B"."""
STATED_BEFORE = re.compile(rf"{STATED.pattern}\Z")
CONCLUDED = re.compile(
    r"(?i)(?:\b(?:so|thus|therefore|hence|leav(?:es|ing)(?: us)?(?: with)?(?: only)?|actually|wait|no|but|rather"
    r"|instead|finally|definitely|certainly|probably|matches|vote(?: for)?|(?:(?:it|that|this) (?:is|was)|(?:must|should|would"
    rf"|has to) be|(?:it|that)'s))\b|是)[ ,:]*{NOUN}{MARKS}\Z"
)
ENDS = re.compile(r"(?i)[\s*_\"'`]*(?:[.,;!。\uff0c]|$|\n|\b(?:because|since|as|not|and not|rather|instead)\b)")
"""What stands before and after a letter of which nothing more is said: "so it is B.", "no, B"."""
MENTIONED = re.compile(rf"(?i)(?:\b(?:options?|choice|letter|answer)\b|选项)\s*[:,]?{MARKS}\Z")
"""What may stand before a letter that is the answer, and also before one that is not."""
VERDICT_ENDS = r"(?=\s*(?:[.,;!)\n]|$))"
RIGHT = re.compile(
    r"(?i)\s(?:(?:is|are|was|would be|must be|seems(?: to be)?|appears(?: to be)?|looks)\b(?: (?:the|clearly|most|very"
    r"|more|likely|probably|indeed))* ?(?:[.!]|$|(?:correct|right|true|best|better|answers?|accurate|appropriate|likely"
    r"|plausible|match|fits?|closest)\b)|it is\b|fits\b|the (?:correct|right|best)\b|(?:is it|does|matches) ?(?:[.!]|$)"
    r"|(?:best|most \w+ly|correctly|accurately|clearly) (?:describes|matches|fits|answers|shows|reflects))"
    rf"|[\s:,(?\u2013-]*(?:yes|true|correct|right){VERDICT_ENDS}|\s*[✓✔✅]|\s*(?:选项)?\s*是?正确"
)
BAD = re.compile(
    r"(?i)\s*[✗✘❌\u00d7]|\s?\b(?:(?:is|are|was|were|would|could|can|may|might|must|should|does|do|did|has|wo|be|seems"
    r"|looks|clearly|also|both|all|therefore|just|simply) ?)+(?:(?:not|n't|false|unlikely|impossible|(?:ruled )?out"
    r"|(?:the |an? )?(?:wrong|incorrect))\b)|(?<![.:])\s?(?:not\b(?!\W*(?-i:[A-Z])\b)|cannot\b)|\s?(?:是错|不)"
    rf"|[\s:,.(?\u2013-]*(?:no|nope|false|wrong|incorrect|not (?:correct|right|true|it)){VERDICT_ENDS}"
)
"""What follows a letter that is the answer, and one that is not."""
NEGATED = re.compile(
    r"(?i)(?:\b(?:not|cannot|never|neither|nor|no|without|than|over|exclude|eliminate|rule out|discard|reject|dismiss"
    r"|instead of|except|doubt|if|whether|unless|wrong|incorrect|(?:any|every)thing but|(?:all|none) but)"
    r"|n't|不是|不选)(?:\s*(?:be|is|it|it's|that|the|either|both|options?|choices?|letter|answers?|are|would|:|choose"
    rf"|pick|select|go with|go for|say|think|believe)(?!\w))*{MARKS}\Z"
)
"""What stands before a letter that is not the answer."""
ARTICLE = re.compile(
    r" +(?!(?:is|are|was|isn't|would|could|can|can't|cannot|may|might|must|should|seems|appears|looks|does|doesn't|has"
    r"|because|since|as|or|and|nor|but|not|fits|matches|describes|shows|best \w+s)\b)[a-z]+"
)
"""What follows "A" and "I" where they are words."""
FILLER = re.compile(
    r"(?i)[\W_]*(?:\b(?:sure|ok|okay|yes|hm+|well|maybe|probably|possibly|perhaps|likely|certainly|only)\b[\W_]*)*"
)
"""What may stand before a letter that begins a reply."""
JOINED = re.compile(r"(?i)(?:[ ,/&、和或]|\b(?:and|or|nor|both|either|options?|choices?)\b)*")
"""What stands between letters of which one thing is said."""
ASKED, ALONE = re.compile(r"(?s)\?.*\w"), re.compile(r"[^\w\n]*(?:\n|\Z|because\b)")
"""What follows a letter that is only considered, and one that nothing follows on its line."""
LOOKED_BACK = 120  # characters before a letter, so that a long reply does not take long
DENIED = re.compile(r" (?:not|isnt|no|nor|neither|without|than|never|instead of)$")
SIGN = (
    r"(?<!\w)-(?=\.?\d)|(?<=\d)[.,:/^-](?=\d)|(?<![\w.])\.(?=\d)"  # of numbers: -5, 3.5, 1:30, 1/2
    r"|(?<=\w)[<>=+](?=\w)|(?<=[a-z])[+#]+(?!\w)"  # x<y, c++
)
"""Punctuation that changes what a text says."""
DROPPED = r"[!-/:-@\[-`{-~。、「」“”…·]"
SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SMALL += [f"{name}teen" for name in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
NUMBER_WORDS = {word: value for value, word in enumerate(SMALL)}
NUMBER_WORDS |= {word: 10 * value for value, word in enumerate(TENS, 2)}
UNITS = (
    "time: 0.001 ms millisecond 1 s sec second 60 min minute 3600 h hr hour 86400 day 604800 week; length: 0.001 mm "
    "millimeter 0.01 cm centimeter 1 m meter 1000 km kilometer 0.0254 inch inche 0.3048 ft foot feet 1609.344 mi mile; "
    "mass: 0.001 mg milligram 1 g gram 1000 kg kilogram kilo 453.59237 lb pound 28.349523 oz ounce; volume: 0.001 ml "
    "milliliter 1 l liter; percent: 1 % percent; celsius: 1 °c celsius; fahrenheit: 1 °f fahrenheit; am: 1 am; pm: 1 pm"
)
"""By dimension its units: how many of its first unit one is, then its names."""
UNIT = {
    name: (known.split(":")[0], float(size))
    for known in UNITS.split("; ")
    for size, names in re.findall(r"([\d.]+)((?: [^\d ]+)+)", known)
    for name in names.split()
}
DIGITS = r"(?<![\w.])-?(?:\d+\s+\d+\s*/\s*\d+|\d+\s*/\s*\d+|(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?)"
CLOCK = r"(?<![\w.:])-?\d+(?::\d\d?){1,2}(?:\.\d+)?(?![\w:])"
QUANTITY = re.compile(
    rf"(?i)({CLOCK}|{DIGITS})(?:\s*({'|'.join(SCALES)}|dozen)\b)?(?:[\s-]*([%°]?[a-z]*(?:/[a-z]+)?))?"
)
"""A number, its scale, its unit."""
RANGE = re.compile(rf"\s*(?:[-\u2013]|to\b|or\b)\s*(?:{DIGITS})", re.I)
TOTAL = re.compile(r"[=≈]|\b(?:so|thus|therefore|hence|total(?:\s+of)?|altogether)\b", re.I)
"""What announces a number, beside STATED."""


def _plain(text: str) -> str:
    """A text in one form of its characters: full-width ones and minus signs as in ASCII, 1,200 as 1200."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", re.sub(r"(?<=\d)(?=[²³¹⁰⁴-⁹])", "^", text))  # 1½ is not 11/2
    text = unicodedata.normalize("NFKC", text).translate({0x2212: "-", 0x2018: "'", 0x2019: "'", 0x2044: "/"})
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"(?<!\w)(?<!\w )\u2013(?=\.?\d)", "-", text))


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
    text = re.sub(rf"{OPENED}.*?{CLOSED}", " ", text, flags=re.S | re.I)
    text = re.split(CLOSED, text, flags=re.I)[-1]
    return re.sub(rf"{OPENED}.*", " ", text, flags=re.S | re.I)


def _final(text: str) -> str:
    """What a reply says in the end, without LaTeX and tags, in plain characters."""
    text = without_thinking(text)
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:boxed|fbox)\s*(?:\{([^{}]*)\}|(\w))", r"\nanswer: \1\2 \n", text)
    text = re.sub(r"<answer>", "\nanswer: ", text, flags=re.I)
    text = TAG.sub(" ", _plain(text)).replace("$", " ").strip()
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text))


class _Mention(NamedTuple):
    """Letters in a reply of which one thing is said, and where they stand; `marked` as in "(B)" or "B."."""

    letters: set[str]
    start: int
    end: int
    marked: bool


def choice(text: str, options: Sequence[str]) -> str | None:
    """The letter that a reply to a multiple-choice question chose, or None.

    In this order: the last stated conclusion ("answer: B", "I choose B", "B is correct", "so it is B."), the beginning
    of the reply, its last sentence if that is a letter, a letter after "option", one marked letter ("(B)", "B."), one
    option's words. Letters and words that are said to be wrong do not count. Where two different letters fit equally
    well, nothing was chosen. "a dog" is the option that says so and not a choice of A; "a" alone is A.
    """
    text = _final(text)
    if normalise(text) in {normalise(option) for option in options} and not re.fullmatch(r"[\W_]*[A-Za-z][\W_]*", text):
        return _by_words(text, options)
    for letter, option in zip(LETTERS, options, strict=False):  # "B. a blue car - yes" says yes to B
        bare, said = "" if letter in "AI" else f"|{letter}", re.escape(option.strip(" ."))
        echo = rf"(?<!{WORD})(\(?(?i:{letter})[.):]+{bare})[\s*_\"'(,;=\u2013-]*(?i:{said})(?!\w)"
        text = re.sub(echo, r"\1", text) if said else text
    found = _mentions(text, options)
    found = [m for m in found if not BAD.match(text, m.end) and not _ends_with(NEGATED, text, m.start)]
    stated = [(m.start, m.letters) for m in found if _is_stated(text, m)]
    announced = [(m.end(), _begins_with(text[m.end() :], options)) for m in STATED.finditer(text)]
    stated += [(place, {letter}) for place, letter in announced if letter]
    begin = [m.letters for m in found if FILLER.fullmatch(text, 0, m.start) and not ASKED.match(text, m.end)]
    breaks = ".!?:;,\n\u2013\u2014-"
    alone = [m.letters for m in found if ALONE.match(text, m.end) and text[: m.start].rstrip(" ")[-1:] in breaks]
    mentioned = [m.letters for m in found if _ends_with(MENTIONED, text, m.start)]
    marked = [m.letters for m in found if m.marked]
    last = [letters for _, letters in sorted(stated, key=lambda one: one[0])[-1:]]
    for some in (last, begin[:1], alone[-1:], mentioned, marked):
        if letters := set().union(*some):
            return letters.pop() if len(letters) == 1 else None
    return _by_words(text, options)


def _mentions(text: str, options: Sequence[str]) -> list[_Mention]:
    """The letters in a text that stand for options, those that are joined by "and", "or" and the like in one."""
    found: list[_Mention] = []
    letters = LETTERS[: len(options)]
    opening, closing = r"[(\[{\"'*_`]*", r"[)\]}\"'*_`]*[.):]?"
    one = rf"(?<!{WORD})(?<!{WORD}\.)({opening})([{letters}{letters.lower()}])({closing})(?!{WORD}|['-]{WORD})"
    for m in re.finditer(one, text):
        letter, after = m[2], text[m.end() :]
        marked = m[3].endswith((".", ")", ":")) or ("*" in m[1] and "*" in m[3])
        if letter in "AIai" and not m[3] and (ARTICLE.match(after) or _begins_with(text[m.start(2) :], options)):
            continue
        announced = _ends_with(STATED_BEFORE, text, m.start()) or _ends_with(MENTIONED, text, m.start())
        at_the_start = not m.start() and (marked or not after.strip(" .*_"))
        if letter.islower() and not ("(" in m[1] or at_the_start or announced):
            continue
        new = _Mention({letter.upper()}, m.start(), m.end(), marked)
        joined = found and letter.upper() not in found[-1].letters and text[found[-1].end - 1] not in ".:"
        if joined and JOINED.fullmatch(text, found[-1].end, m.start()):
            old = found.pop()
            new = _Mention(old.letters | new.letters, old.start, new.end, old.marked or marked)
        found.append(new)
    return found


def _ends_with(announcement: re.Pattern[str], text: str, end: int) -> bool:
    """Whether what stands in a text up to `end` ends with an announcement."""
    return bool(announcement.search(text, max(end - LOOKED_BACK, 0), end))


def _is_stated(text: str, mention: _Mention) -> bool:
    """Whether a letter is announced, said to be right, or the end of a conclusion."""
    if _ends_with(STATED_BEFORE, text, mention.start) or RIGHT.match(text, mention.end):
        return True
    ends = text[mention.end - 1] == "." or ENDS.match(text, mention.end)
    return bool(ends and _ends_with(CONCLUDED, text, mention.start))


def _begins_with(text: str, options: Sequence[str]) -> str | None:
    """The option, of more than a letter, whose words begin a text; the longest one."""
    reply = f"{normalise(text[: 2 * max(map(len, options)) + 9])} "
    known = {letter: normalise(option) for letter, option in zip(LETTERS, options, strict=False)}
    found = [letter for letter, option in known.items() if len(option) > 1 and reply.startswith(f"{option} ")]
    return max(found, key=lambda letter: len(known[letter]), default=None)


def _by_words(text: str, options: Sequence[str]) -> str | None:
    """The option whose words are the reply, or the only one whose words are in it and not denied."""
    reply = f" {normalise(text)} "
    known = {letter: option for letter, option in zip(LETTERS, map(normalise, options), strict=False) if option}
    whole = [letter for letter, option in known.items() if reply.strip() == option]
    found = {letter: list(re.finditer(f" {re.escape(option)}(?= )", reply)) for letter, option in known.items()}
    within = [x for x, places in found.items() if any(not DENIED.search(reply, 0, place.start()) for place in places)]
    # an option inside a longer one that is there, too, was not meant
    longest = [x for x in within if not any(known[x] in known[other] for other in within if other != x)]
    return next((found[0] for found in (whole, longest) if len(found) == 1), None)


def number(text: str) -> float | None:
    """The number that a reply says, as `quantity` finds it, without its unit."""
    found = quantity(text)
    return None if found is None else found[0] / found[2]


def quantity(text: str) -> tuple[float, str, float] | None:
    """The quantity that a reply says: its value in the first unit of its dimension, the dimension, its own unit's size.

    "1.5 min" is (90, "time", 60), "1:30" (90, "time", 1), "3 dogs" (3, "", 1). What is announced as the answer or the
    total counts before what comes first. None without a number, and where it is one of two, as in "2 or 3".
    """
    text = re.sub(r"\b(?:not|instead of|rather than|n't) -?\d[\d.:/]*", " ", _final(text))
    text = re.sub(r"(?i)\b([ap])\.m\.", r"\1m", re.sub(r"(?<=\d)([hm])(?=\d)", r"\1 ", text))
    text = re.sub(r"(?<=\d)( ?)m(?= \d+ ?s\b)|(?<=h)( ?\d+ ?)m\b", r"\1\2min", text)  # 1h20m, 5m30s: m are minutes
    parts = [text[found.end() :] for pattern in (STATED, TOTAL) for found in [*pattern.finditer(text)][::-1]]
    for part in map(_with_digits, [*parts, text]):
        if found := QUANTITY.search(part):
            return None if RANGE.match(part, found.end(1)) else _quantity(part, found)
    return None


def _quantity(text: str, found: re.Match[str]) -> tuple[float, str, float] | None:
    value, (kind, size) = _value(found[1]), _unit(found[3] or "")
    if value is None:
        return None
    value *= {**SCALES, "dozen": 12}[found[2].lower()] if found[2] else 1
    if ":" in found[1]:  # of minutes and seconds, or of hours where it says so
        return value * (60 if size == 3600 and found[1].count(":") == 1 else 1), kind or "time", 1
    more = QUANTITY.match(re.sub(r"^(?:\s|,|and\b)*", "", text[found.end() :]))  # "1 min 30 s"
    rest = _quantity(more.string, more) if more and kind else None
    same = rest is not None and rest[1] == kind and rest[2] < size
    return value * size + (math.copysign(rest[0], value) if rest and same else 0), kind, size


def _value(number: str) -> float | None:
    """The value of digits: "3.5", "1 1/2", "1:30" in seconds; None for a division by zero."""
    sign, number = (-1, number[1:]) if number.startswith("-") else (1, number)
    if ":" in number:
        return sign * sum(float(part) * 60**place for place, part in enumerate(number.split(":")[::-1]))
    if found := re.fullmatch(r"(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)", number):
        below = float(found[3])
        return sign * (float(found[1] or 0) + float(found[2]) / below) if below else None
    return sign * float(number)


def _unit(name: str) -> tuple[str, float]:
    """The dimension and size of a unit, such as of "minutes" or "km/h"; ("", 1) for other words."""
    names = name.lower().replace("tre", "ter").split("/")
    known = [UNIT.get(one) or UNIT.get(one.removesuffix("s"), ("", 1.0)) for one in names]
    if len(known) == 2 and all(kind for kind, _ in known):
        return f"{known[0][0]}/{known[1][0]}", known[0][1] / known[1][1]
    return known[0]


def _with_digits(text: str) -> str:
    """A text with the first number in words in digits, unless it has digits; "minus" as a sign."""
    said = [] if re.search(r"\d", text) else list(re.finditer(r"[a-z]+", text, re.I))
    begins = {*NUMBER_WORDS, "half", "dozen", "hundred"}
    for place, word in enumerate(said):
        if word[0].lower() in begins:
            value, used = _in_words([one[0].lower() for one in said[place:]])
            rest = re.sub(r"^\s*(?:of )?an? ", " ", text[said[place + used - 1].end() :])
            text = f"{text[: word.start()]}{value:.12g} {rest}"
            break
    return re.sub(r"\b(?:minus|negative)\s+(?=\.?\d)", "-", text, flags=re.I)


def _in_words(said: Sequence[str]) -> tuple[float, int]:
    """The number at the beginning, and of how many words: "one hundred and five", "twenty five", "two and a half"."""
    total = current = 0.0
    used = 0
    for place, word in enumerate(said):
        if word in NUMBER_WORDS:
            current += NUMBER_WORDS[word]
        elif word in SCALES:
            current = max(current, 1) * SCALES[word]
            if SCALES[word] > 100:
                total, current = total + current, 0.0
        elif word in ("half", "dozen"):
            return (total + current + 0.5 if word == "half" else 12 * max(current, 1)), place + 1
        elif word in ("and", "a"):
            continue
        else:
            break
        used = place + 1
    return total + current, used
