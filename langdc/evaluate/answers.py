"""Reads words and numbers from a reply; `langdc.evaluate.choices` reads the letter of an option.

All tasks share this parser, so that entries differ by model and never by parser. A reply that cannot be read is None:
it scores 0 and is counted separately.
"""

import math
import re
import unicodedata
from collections.abc import Callable

TAG = re.compile(r"</?\w+\s*/?>|<\|[\w-]+\|>")
OPENED, CLOSED = (
    rf"(?:<{slash}(?:seed:)?(?:think|thinking|thoughts?|reasoning|analysis|scratchpad)>"
    rf"|[\[◁]{slash}think[\]▷]|<\|{word}_of_thought\|>|<\|channel\|>{channel}<\|message\|>)"
    for slash, word, channel in (("", "begin", "analysis"), ("/", "end", "final"))
)
WORD = r"[^\W\u3040-\u9fff\uac00-\ud7af]"  # a letter or digit of a script that puts spaces between words
MARKS = r"[ *_\"'`]*"
NOUN = (
    r"(?:(?:(?:the|la|a|die|der) |l')?(?:\b(?:options?|choice|letter"
    r"|opci[oó]n|op[çc][ãa]o|letr[ae]|lettr[ea]|opzione|lettera|buchstabe)\b|选项|選項)\s*:?\s*)?"
)
TICK = r"[-*• ]*(?:[✓✔✅☑]\ufe0f?|\[x\]) *"
STATED = re.compile(
    r"(?i)(?:(?:\b(?:answers?|ans|correct(?:ion)?|(?:(?:most )?(?:accurate|appropriate|likely|suitable|fitting)|correct"
    r"|best|right|final|closest|my|the) (?:option|choice|pick|letter|one|match|fit|description)"
    r"|(?:option|choice|selection|pick|verdict|conclusion)(?= (?:is|was|would|must|has)\b|[\"'] ?:)"
    r"|respuesta|r[ée]ponse|antwort|resposta|risposta|ответ)\b|答案|选项|選項|答え|正解|정답)"
    rf"(?:(?!(?<!{WORD})[A-HJ-Z](?!{WORD}))[^.\n:=?!]){{0,40}}?"  # "to this question"
    r"(?: ?(?:\b(?:is|was|be|are|es|est|ist|é|è)\b|'s\b|[是为為選选은는は]|[:=→➜⇒>|\n]|->|[-\u2013] |[\"']:))+ ?"
    r"(?:(?:\b(?:clearly|definitely|indeed|therefore|thus|(?:most )?likely|probably|only|la|le|el|die)\b|\.{3}|…|,)\s*)"
    r"*|(?:\b(?:choos(?:e|ing)|chosen?|pick(?:ing|ed)?|select(?:ing|ed)?|opt for|go(?:ing)? (?:with|for)|say|guess"
    r"|think|believe|conclude|prefer|favou?r|lean(?:ing)?(?: (?:towards?|to))?|settled? (?:on|for)|answer with"
    r"|switch(?:ing|ed)? to|chang(?:e|ing|ed) (?:my|the) (?:answer|choice|mind)(?: from [A-Z])? to"
    r"|(?:(?<=\bI )|(?<=\bI'd )|(?<=would )|(?<=will ))answer)\b"
    rf"(?: that\b)?(?: (?:it's|it is|it must be)\b)?|选择|選擇|[选選])[\s:]*|(?m:^){TICK}){NOUN}{MARKS}"
)
"""What announces an answer: "Answer: B because ...", "the correct option is (B)", "I would choose B"."""
SIGN = (
    r"(?<!\w)-(?=\.?\d)|(?<=\d)[.,:/^-](?=\d)|(?<![\w.])\.(?=\d)|(?<=\d)%"  # of numbers: -5, 3.5, 1:30, 1/2, 50%
    r"|(?<=\w)[<>=+](?=\w)|(?<=[a-z])[+#]+(?!\w)"  # x<y, c++
)
"""Punctuation that changes what a text says."""
DROPPED = r"[!-/:-@\[-`{-~。、「」“”…·\u2013\u2014•]"
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SMALL += [f"{name}teen" for name in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
NUMBER_WORDS = {word: value for value, word in enumerate(SMALL)} | {
    word: 10 * tens for tens, word in enumerate(TENS, 2)
}
NUMBER_WORDS[""] = 0
PARTS = {"half": 2, "halve": 2, "quarter": 4} | dict(zip([*ORDINALS[2:], "tenth"], range(3, 11), strict=True))
NAMED = rf"no|the|this|that|which|each|every|any|another|other|left|right|{'|'.join(ORDINALS)}"
"""What stands before a "one" or "half" that is no number: "the second one"."""
QUOTES = dict.fromkeys(map(ord, "“”„«»「」『』【】"), '"') | {0x2018: "'", 0x2019: "'"}
UNITS = (
    "time: 0.001 ms millisecond 1 s sec second 60 min minute 3600 h hr hour 86400 day 604800 week; length: 0.001 mm "
    "millimeter 0.01 cm centimeter 1 m meter 1000 km kilometer 0.0254 inch inche 0.3048 ft foot feet 1609.344 mi mile "
    "0.9144 yd yard; length/time: 0.44704 mph 0.514444444 knot kn 0.277777778 kmh kph; "
    "months: 1 month 12 year yr; dollar: 1 dollar usd; euro: 1 euro eur; cent: 1 cent; yen: 1 yen; yuan: 1 yuan; "
    "frame: 1 frame; gallon: 1 gallon gal; kelvin: 1 kelvin; hertz: 1 hz hertz; watt: 1 watt; volt: 1 volt; "
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
NO_UNITS = re.compile(
    r"(?i)total|altogether|only|exactly|precisely|approx(?:imately)?|roughly|maybe|i[nfst]?|on|at|of|to|as|by|for|from"
    r"|with|and|or|but|so|are|was|were|because|since|while|when|which|that|who|there|here|apart|each|more|whole|long|away"
)
"""What may follow a number that has no unit."""
POINT = (
    r"(?:(?:frames?|scene|clip|shot|part|step|segment|image|video|question) #?\d+(?:(?:-| to )\d+)?"
    r"|(?:\d\d? [a-z]{3,9} )?(?:1[89]|20)\d\d(?![ ,]\d| [a-z]+s\b)"
    r"|\d+(?::\d\d){1,2}(?:\.\d+)?(?: ?[ap]m\b)?|\d\d? ?[ap]m\b)"
)
POINTS = rf"{POINT}(?:(?: ?[-\u2013~] ?| (?:to|and|or) ){POINT})*"
LASTS = r"\d+(?:\.\d+)?(?:[ -]?(?:s|secs?|seconds?|min|minutes?)| frames?)\b"
TIMED = re.compile(
    rf"(?:^|(?<=[.!?:] ))(?:(?:at|around|in|on|from|by|since|after|before|between|during|until)"
    rf"(?: [a-z]+){{0,2}} {POINTS},? "
    rf"|{POINTS} ?[:\u2013-] |(?:at|after|based on|(?:at|in|during|within|across|over|from|on) the)"
    rf"(?: (?:the|about|around|first|last))* {LASTS}(?: marks?)?,? )(?!(?:or|and|to)\b|-?{POINT}|-?{LASTS})"
    rf"|[\[(]{POINTS}[\])]:?",
    re.I | re.M,
)
"""When something was seen, before what was seen: "At 00:12, I see", "[0:05-0:10]", "In 2019 there were"."""
LISTED = re.compile(rf"(?:{TIMED.pattern}|^[^\w\n]{{0,9}}\d\d?[.)] )", TIMED.flags)
"""The same, and what numbers an item of a list: there the count is what is said of all."""
DIGITS = (
    rf"(?<!{WORD})(?<!\.)(?<!\d[.,:/^])(?<![A-Za-z]-)-?(?:\d+\s+\d+\s*/\s*\d+|\d+\s*/\s*\d+|(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?)"
    r"(?![.,:/^]?\d|\^)"
)
SOURCE = re.compile(
    r"(?:^|(?<=[.!?:] ))(?:based on|according to|as seen in|in|from) (?:the|this) [a-z]+,? (?=[a-z]+ \d)", re.I | re.M
)
"""What a sentence may begin with before it says when: "Based on the video, at 0:12 there are"."""
CLOCK = rf"(?<!{WORD})(?<![.:])-?\d+(?::\d\d?){{1,2}}(?:\.\d+)?(?!{WORD}|:)"
QUANTITY = re.compile(
    rf"(?i)({CLOCK}|{DIGITS})(?:\s*({'|'.join(SCALES)}|dozen)\b)?(?:[\s-]*([%°]?[a-z]*(?:/[a-z]+)?(?:\^?[23](?!\w))?))?"
)
"""A number, its scale, its unit."""
ANOTHER = re.compile(
    r"(?i)(?:(?:\s+[a-z]+){0,2}?\s*(?:,|\b(?:and|or|to|by|x)\b|[-\u2013\u00d7~])\s*"
    rf"(?:(?:and|or|maybe|perhaps|possibly|even)\s+)*|\s+)({CLOCK}|{DIGITS})"
)
"""What follows a number that is one of two: "2 or 3", "3 red cars and 2 blue ones"."""
TOTAL = re.compile(r"[=≈]|\b(?:so|thus|therefore|hence|total(?:\s+of)?|altogether)\b", re.I)
"""What announces a number, beside STATED."""


def plain(text: str) -> str:
    """A text in one form of its characters: full-width ones, quotes and minus signs as in ASCII, 1,200 as 1200."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", re.sub(r"(?<=\d)(?=[²³¹⁰⁴-⁹])", "^", text))  # 1½ is not 11/2
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text)
    text = unicodedata.normalize("NFKC", text).translate(QUOTES | {0x2212: "-", 0x2044: "/"})
    text = re.sub(r"(?<=\d),(?=(?:\d\d,){0,4}\d{3}(?!\d))", "", re.sub(r"(?<!\w)(?<!\w )\u2013(?=\.?\d)", "-", text))
    return re.sub(r"(?<=\d)\s+(?=[%°])", "", text)


def normalise(text: str) -> str:
    """Lower case, without extra spaces and punctuation, but for signs of numbers: "(D)." is "d", "-3.5" stays."""
    return " ".join(re.sub(f"({SIGN})|{DROPPED}", lambda found: found[1] or "", plain(text).lower()).split())


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and tags; numbers with signs, zero to twelve in digits."""
    text = plain(TAG.sub(" ", without_thinking(text))).lower().replace("'", "")
    found = re.findall(r"(?<![\w.])-?(?:\d+(?:[.:/^-]\d+)*|\.\d+)(?!\w)|\w+(?:(?<=[a-z])[+#]+(?!\w))?", text)
    return [str(SMALL.index(word)) if word in SMALL[:13] else word for word in found]


def without_thinking(text: str) -> str:
    """A reply without its thinking (<think> and similar), which the prompt may have begun and which may be cut off."""
    kept, thought = [""], [""]
    for part in re.split(CLOSED, text, flags=re.I):
        kept = kept if thought else []  # what closes without a beginning was thought from the start
        before, *thought = re.split(OPENED, part, maxsplit=1, flags=re.I)
        kept.append(before)
    answered = re.search(r"(?i)<answer>[^<]*</answer>\s*\Z", thought[0]) if thought else None  # which may end it, too
    return " ".join([*kept, answered[0] if answered else ""])


def final(text: str) -> str:
    """A reply without thinking, LaTeX and tags, in plain characters; boxed and tagged answers become "answer: ..."."""
    text = without_thinking(text)
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:text|math|mbox|operatorname)\w*\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:times|cdot)\b", "x", re.sub(r"\\[ ,;:!()\[\]]", " ", text))
    text = re.sub(r"(?<![{\\])\{(?:\\?\{)+([^{}]*?)(?:\\?\})+\}", r"{\1}", re.sub(r"<br\s*/?>", "\n", text))
    boxed = r"\\(?:f|frame)?box(?:ed)?\s*(?:\{([^{}]*)\}|(\w))|(?:\x08|\bb)oxed\s*\{([^{}]*)\}"  # "\b" as a backspace
    text = re.sub(boxed, r"\nanswer: \1\2\3 \n", text)
    text = re.sub(r"<(?:final_?)?(?:answer|conclusion)>", "\nanswer: ", text, flags=re.I)
    text = re.sub(r"<([A-Z])>(?!.{0,200}</\1>)", r"(\1)", text, flags=re.S)
    text = TAG.sub(" ", plain(text)).replace("$", " ").strip()
    text = re.sub(r"([(\[{])\s+(\w)\s+([)\]}])", r"\1\2\3", text)
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text))


def number(text: str) -> float | None:
    """The number that a reply says, as `quantity` finds it, without its unit."""
    found = quantity(text)
    return None if found is None else found[0] / found[2]


def quantity(text: str) -> tuple[float, str, float, str] | None:
    """The quantity that a reply says: its value in the first unit of its dimension, the dimension, its own unit's size.

    Last, the word behind the number if it may be a unit that is not known. "1.5 min" is (90, "time", 60, ""), "1:30"
    (90, "time", 1, ""), "3 dogs" (3, "", 1, "dogs"). What is announced as the answer or the
    total counts before what comes first; a time at which something was seen counts if there is no other number, the
    items of a numbered list do not. None without a number, and where it is one of two, as in "2 or 3".
    """
    text = with_digits(final(text))
    power = r"(?<![\w.])(?:(\d+(?:\.\d+)?) ?[x\u00d7*·] ?)?10 ?\^ ?\{?([+-]?\d+)\}?"
    text = re.sub(power, lambda found: f"{found[1] or 1}e{found[2]}", text)
    text = re.sub(r"(?:\b(?:not|instead of|rather than)|n't) -?\d[\d.:/]*", " ", text)
    text = re.sub(r"(?i)\b([ap])\.m\.", r"\1m", re.sub(r"(?<=\d)([hm])(?=\d)", r"\1 ", text))
    text = re.sub(r"(?<=\d)( ?)m(?= \d+ ?s\b)|(?<=h)( ?\d+ ?)m\b", r"\1\2min", text)  # 1h20m, 5m30s: m are minutes
    text = re.sub(r"(?i)(?<=[a-z]) per (?=[a-z])", "/", re.sub(r"(?i)\b(?:square|sq) ([a-z]+)", r"\1^2", text))
    text = re.sub(r"(?i)\bcubic ([a-z]+)", r"\1^3", text)
    if len(LISTED.findall(text)) > 1:
        text, whole = LISTED.sub("", text), re.sub(rf"{LISTED.pattern}.*", "", text, flags=LISTED.flags)
    else:
        untimed = TIMED.sub("", SOURCE.sub("", text))
        text = whole = untimed if QUANTITY.search(untimed) else text
    parts = [pattern.split(text)[:0:-1] for pattern in (STATED, TOTAL)]
    for part in (*parts[0], *parts[1], whole):
        for found in QUANTITY.finditer(part):
            glued = re.match(r"(?i)[a-z]", part[found.end(2 if found[2] else 1) :][:1])
            if glued and (not _unit(found[3])[0] or found[3] == "M"):  # "3D", "2nd"; "3M" may be millions
                continue
            if (said := _quantity(part, found)) is None or not math.isfinite(said[0]):
                return None
            other = ANOTHER.match(part, said[3])
            word = "" if said[1] or NO_UNITS.fullmatch(found[3] or "") else found[3] or ""
            return None if other and _value(other[1]) != _value(found[1]) else (*said[:3], word)
    return None


def _quantity(text: str, found: re.Match[str]) -> tuple[float, str, float, int] | None:
    """The quantity that a match begins, with those that continue it ("1 min 30 s"), and its end."""
    value, (kind, size) = _value(found[1]), _unit(found[3] or "")
    if value is None:
        return None
    value *= {**SCALES, "dozen": 12}[found[2].lower()] if found[2] else 1
    end = found.end() if kind else found.end(2) if found[2] else found.end(1)
    if ":" in found[1]:  # of minutes and seconds, or of hours where it says so
        return value * (60 if size == 3600 and found[1].count(":") == 1 else 1), kind or "time", 1, end
    between = re.compile(r"(?:\s|,|and\b)*").match(text, found.end())
    more = QUANTITY.match(text, between.end()) if between else None
    rest = _quantity(text, more) if more and kind else None
    if rest is None or rest[1] != kind or rest[2] >= size:
        return value * size, kind, size, end
    return value * size + math.copysign(rest[0], value), kind, size, rest[3]


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
    if power := re.fullmatch(r"(.*?[a-z])\^?([23])", name, re.I):
        kind, size = _unit(power[1])
        return (f"{kind}^{power[2]}", size ** int(power[2])) if kind else ("", 1.0)
    names = name.lower().replace("tre", "ter").split("/")
    known = [UNIT.get(one) or UNIT.get(one.removesuffix("s"), ("", 1.0)) for one in names]
    if len(known) == 2 and all(kind for kind, _ in known):
        return f"{known[0][0]}/{known[1][0]}", known[0][1] / known[1][1]
    return (f"{known[0][0]}/{names[1]}", known[0][1]) if len(known) == 2 and known[0][0] else known[0]


def is_amount(option: str) -> bool:
    """Whether an option is only a number, with or without a unit."""
    found = QUANTITY.fullmatch(plain(option).strip(" ."))
    return bool(found and (not found[3] or _unit(found[3])[0]))


def with_digits(text: str) -> str:
    """A text with number words as digits, and "minus" as a sign."""

    def sub(pattern: str, value: Callable[[re.Match[str]], float]) -> None:
        nonlocal text
        text = re.sub(rf"(?i)\b{pattern}\b", lambda found: f"{value(found):.12g}", text)

    text = re.sub(r"(?<=\d)(?: ?k|K)\b(?<!4K)(?<!8K)(?! (?:resolution|video|footage|run|race)\b)", " thousand", text)
    text = re.sub(r"(?<=\d)M(?= (?:[a-z]+s|people)\b)", " million", text)
    text = re.sub(rf"(?i)\b({NAMED})[ -]one\b|\bone (?=(?:can|could|would|must|should|another)\b)", r"\1 it ", text)
    ones, tens, parts = ("|".join(each) for each in (SMALL[1:10], TENS, PARTS))
    sub(
        rf"({tens})(?:[ -]({ones}))?\b(?![ -](?:{parts}|first))",
        lambda m: NUMBER_WORDS[m[1].lower()] + NUMBER_WORDS[(m[2] or "").lower()],
    )
    sub(f"({'|'.join(SMALL)})", lambda m: NUMBER_WORDS[m[1].lower()])
    sub(rf"1[ -]({parts})", lambda m: 1 / PARTS[m[1].lower()])
    sub(rf"(\d+)[ -]({parts})s", lambda m: float(m[1]) / PARTS[m[2].lower()])
    sub(rf"(\d+) and (?:a )?({parts})", lambda m: float(m[1]) + 1 / PARTS[m[2].lower()])
    text = re.sub(rf"(?i)\b({NAMED}|and a)[ -]half\b", r"\1 it", text)
    sub(r"half(?: an?)?", lambda _: 0.5)
    for name, size in {**SCALES, "dozen": 12}.items():
        pattern = rf"(?<![\d.])(\d+|a) {name}(?: (?:and )?(\d{{1,{len(str(size)) - 1}}})(?! ?[\d.,]\d))?"
        sub(pattern, lambda m, size=size: size * float(m[1].lower().replace("a", "1")) + float(m[2] or 0))
    sub(r"(\d) point ((?:\d ?)+)", lambda m: float(f"{m[1]}.{m[2].replace(' ', '')}"))
    return re.sub(r"(?i)\b(?:minus|negative)\s+(?=\.?\d)", "-", text)
