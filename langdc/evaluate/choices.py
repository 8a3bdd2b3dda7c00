"""Which option a reply to a multiple-choice question chose."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from langdc.data.records import LETTERS
from langdc.evaluate import answers
from langdc.evaluate.answers import MARKS, NOUN, ORDINALS, SMALL, STATED, TOTAL, WORD, normalise, plain, with_digits

CROSS = r"[-*• ]*(?:[✗✘❌☐]\ufe0f?|\[ \]) *"
CONCLUDED = re.compile(
    r"(?i)(?:\b(?:so|thus|therefore|hence|leav(?:es|ing)(?: us)?(?: with)?(?: only)?|actually|wait|no|but|rather"
    r"|instead|finally|definitely|certainly|probably|matches|(?:points?|corresponds?) to|supports?|indicates?|suggests?"
    r"|(?:video|clip|footage|frames?) shows?|is|are|its|means?|gives?|have|get|by|about|as|to be|left with"
    r"|vote(?: for)?|(?:it|that|this) (?:is|was)|(?:must|should|would|ha[sd] to|got to|needs to) be|(?:it|that)'s)\b|是"
    rf"|所以|因此|故)[ ,:]*{NOUN}{MARKS}\Z"
)
ENDS = re.compile(r"(?i)[\s*_\"'`]*(?:[.,;!。\uff0c]|$|\n|\b(?:because|since|as|not|and not|rather|instead)\b)")
"""What stands before and after a letter that ends a conclusion: "so it is B.", "no, B"."""
MENTIONED = re.compile(rf"(?i)(?:\b(?:options?|choice|letter|answer)\b|选项|選項)\s*[:,]?{MARKS}\Z")
"""What may stand before a letter that is the answer, and also before one that is not."""
VERDICT_ENDS = r"(?=\s*(?:[.,;!)\n]|$))"
RIGHT = re.compile(
    r"(?i)(?:, (?:however|though|instead|on the other hand),)?\s(?:(?:is|are|was|(?:would|must|has to|should)"
    r" be|(?:seems|appears)(?: to be)?|looks)\b(?: (?:the|an?|my|only|clearly|exactly|perfectly|most|very"
    r"|more|likely|probably|indeed|final))* ?(?:[.!]|$|(?:correct|right|true|best|better|answers?|choice|accurate"
    r"|appropriate|likely|plausible|reasonable|suitable|convincing|consistent|(?:good )?match|fits?|closest|closer|what"
    r"|one (?:that|which))\b(?! if\b))|(?:it is|fits|remains|is left|(?:has|shows) the (?:right|correct|actual))\b"
    r"|(?:as )?the (?:only )?(?:correct|right|best|most)\b|(?:is it|does|matches) ?(?:[.!]|$)"
    r"|(?:best|most \w+ly|correctly|accurately|clearly) (?:describes|matches|fits|answers|shows|reflects)"
    r"|(?:describes|matches|reflects|captures) (?:exactly )?(?:what|the (?:video|scene|clip|footage))\b)"
    rf"|[\s:=,(?\u2013-]*(?:yes|true|correct|right){VERDICT_ENDS}| *[✓✔✅]| *(?:选项|選項)?\s*是?(?:正[确確]|[对對])"
)
BAD = re.compile(
    r"(?i) *[✗✘❌\u00d7]| would (?:only )?(?:be|have been) (?:the )?(?:correct|right|true|best|answer)(?: \w+)? ?"
    r"(?:only|if|when|had|unless|at the (?:very )?(?:start|beginning|end))\b"
    r"|(?!\s?do(?: not|n't) (?:choose|pick|select|answer|go|say))"
    r"\s?\b(?:(?:is|are|was|were|would|could|can|may|might|must|should|does|do|did|has|wo|be|seems"
    r"|looks|clearly|also|both|all|therefore|just|simply|likely|probably|definitely|obviously|partly|most|very) ?)+"
    r"(?:not|n't|false|impossible|implausible|in(?:accurate|consistent)|(?:ruled )?out|eliminated|excluded|rejected"
    r"|(?:the |an? )?(?:wrong|incorrect|(?:un|less |least )likely))\b|(?<![.:])\s?(?:not\b(?!\W*(?-i:[A-Z])\b)"
    rf"|cannot\b)|[\s:=,.(?\u2013-]*(?:no|nope|false|wrong|incorrect|not (?:correct|right|true|it)){VERDICT_ENDS}"
    r"|\s?(?:选项|選項)?是?[错錯不]"
    r"|\s(?:(?:looks|seems|appears|sounds|comes|may|might|could)|(?:is|was)(?: \w+){0,2} (?:tempting|plausible|possible"
    r"|close|likely|reasonable|attractive|similar))\b[^.;\n!?]{0,150}?\b(?:but|yet|however|though)\b"
    rf"[^.\n]{{0,100}}?(?-i:(?<!{WORD})[A-HJ-Z](?!{WORD}))"  # "A is close, but B is what happens"
)
"""What follows a letter that is the answer, and one that is not."""
NEGATED = re.compile(
    r"(?i)(?:\b(?:not|cannot|never|neither|nor|no(?! ?[:,])|without|than|over|excluded?|eliminated?|ruled? out"
    r"|reject(?:ed)?|discard(?:ed)?|dismiss(?:ed)?|instead of|except|doubt|if|whether|unless|wrong|incorrect|unlikely"
    r"|least likely|(?:any|every)thing but|(?:all|none) but)"
    rf"|n't|不是|不选|不選|排除|并非|而非|(?m:^){CROSS})(?:\s*(?:be|is|it|it's|that|the|to|either|both|options?|choices?"
    r"|letter|answers?|are|would|:|choose|pick|select|go with|go for|say|think|believe|sure|certain|clear|convinced"
    rf"|necessarily|really|longer|any|by)(?!\w))*{MARKS}\Z"
)
"""What stands before a letter that is not the answer."""
SAME = (  # the rest of a statement
    r"(?:(?!\b(?:but|however|yet|so|thus|therefore|hence|(?-i:[A-Z]))\b|, (?:and|it)\b|,[\s*(]*\Z)[^.\n!?;¦])*"
)
THINKS = (
    r"(?:(?:say|argue|think|believe|claim|assume|suggest|suppose|insist)(?:s|d|ed)?|said|thought|chose|picked|selected"
    r"|(?:answer|guess)(?:ed|(?! ?(?:is|was|to|[:=]))))"
)
PERSON = (
    r"\b(?:some|someone|somebody|every(?:one|body)|many|few|others|most(?= (?:people|viewers|of|would|will|may|might"
    r"|could))|people|they|(?:viewer|reader|user|author|annotator|friend|student|teacher|expert|colleague|classmate"
    r"|reviewer|model|llm|brother|sister|mother|father|wife|husband)s?|chatgpt|gpt-?\w+|gemini)\b"
)
OF_OTHERS = re.compile(
    rf"(?i)(?:(?:{PERSON}'?s? (?:answer|choice|guess|pick|opinion|view) (?:is|was|would)\b"
    rf"|{PERSON}(?: (?!I\b)[\w']+){{0,4}}? (?:{THINKS}|(?:could|may|might|would|will) (?:\w+ )?(?:choose|pick|select"
    rf"|go for))|\b(?:one|you|he|she|anyone) (?:could|may|might)(?: \w+){{0,2}}? {THINKS}"
    r"|\b(?:could|may|might) be (?:argued|said)|\b(?:mistake|trap|misconception) (?:is|was|would|could|may|that|to)"
    rf"|\btempt(?:ing|ed)|\b(?:mistaken|wrong|incorrect|erroneous)ly (?:{THINKS}|choose|pick|select)|\balternatively"
    r"|\blet me know|\bfeel free|\bwould you like"
    rf"|\b(?:initially|originally|previously|earlier|at first),?(?: I(?: had)?)? (?:{THINKS}|considered|leaned))\b"
    rf"{SAME}|(?:\baccording to (?:\w+ ){{0,2}}?{PERSON}|{PERSON}'s (?:opinion|view)),?[^.,\n!?;¦]{{0,30}}"
    r"|(?:\b(?:al)?though|(?<![\w,;] )\b(?:while|granted,?|whereas|(?:at first|on the surface)(?: (?:glance|look))?,?))"
    rf"(?: (?:the|it|may|might|could|be|is|was))* ?{NOUN}{MARKS})\Z"
)
RANKED = re.compile(
    r"(?i)\b(?:(?:second|third|next|2nd|3rd|another|other|alternat(?:iv)?e|back-?up|fallback|previous|earlier|former"
    r"|initial|original|prior|secondary|worst|less|least)(?:[ -](?:best|most|likely|probable|possible|plausible"
    r"|appropriate|suitable|accurate|correct|closest|answers?|choices?|options?|guess|pick|candidate|match|question"
    r"|place|one))+|runner-up|alternative|followed by)"
    rf"(?: (?:here|is|was|are|were|would|could|might|may|be))*\b[ :=(]*(?:(?:probab|possib)ly )?{NOUN}{MARKS}\Z"
    rf"|\b(?:if\b{SAME} (?:had|were)(?! to)|had the)\b[^.\n!?;]* (?:would|could|might)(?: be| have been)? "
    rf"{NOUN}{MARKS}\Z"
)
"""What stands before a letter that others, an earlier or a second thought, would choose: "some say it is A"."""
YOURS = re.compile(
    r"(?i)\b(?:(?:your|their|his|her|\w+'s|given|predicted) (?:answer|choice|prediction)(?: (?:is|was))?[ :=]*"
    rf"|(?:in (?:another|a different)|in the (?:example|previous))\b{SAME}"
    rf"(?:would|could|might|was)(?: be| have been)? ){NOUN}{MARKS}\Z"
)
"""What stands before a letter that is no answer to the question where another letter stands before it."""
ABOUT = "is|seems|appears|looks|does|doesn't|isn't|has|because|since|as|or|and|nor|but|not|fits|matches|describes|shows"
ABOUT_A = r"are|was|would|could|can(?! of\b)|can't|cannot|may|might|must|should|according|from|in|on|at|to|by|then|only"
CAPITAL = r"(?!(?:The|This|In|It|Based|There|He|She|They|Explanation|Reason)\b)[A-Z]\w"
ARTICLE = {
    "A": re.compile(
        rf" +(?!(?i:{ABOUT}|{ABOUT_A}|over|for|with|here|indeed|which|best \w+s)(?![\w-]))(?:[a-z]|\d+-[a-z]|{CAPITAL})"
    ),
    "I": re.compile(rf" +(?!(?:{ABOUT}|over)\b)[a-z]"),
}
"""What follows "A" and "I" where they are words."""
FILLER = re.compile(
    r"(?i)[\W_]*(?:\b(?:sure|ok|okay|yes|hm+|well|maybe|probably|possibly|perhaps|(?:most )?likely|(?:certain|clear"
    r"|obvious|sure|definite)ly|of course|only|\d+ ?%)\W*)*"
)
"""What may stand before a letter that begins a reply."""
JOINED = re.compile(r"(?i)(?:[ ,/&、和或]|\(?\b(?:and|or|nor|both|either|maybe|possibly|perhaps|options?|choices?)\b)*")
"""What stands between letters that are mentioned together."""
ALONE = re.compile(r"[^\w\n?]*(?:\n|\Z|because\b)")
TOLD = re.compile(
    r"(?is)\s(?:is|are|was|were|has|could|can|may|might|would|seems?|looks?)\b|\?.*\w|\W*\d+ ?%.{1,40}\d ?%"
)
"""What follows a letter that is alone on its line, and one that is only considered, although it comes first."""
AGREES = re.compile(r"(?i)\b(?:correct|true|yes|accurate|matches|fits|plausible|consistent|supported)\b|[✓✔✅]")
DISAGREES = re.compile(
    r"(?i)\b(?:(?:in|un)(?:correct|accurate|consistent|likely|supported)|wrong|false|no|not|cannot|implausible|never)\b"
    r"|\bpart(?:ly|ially)\b|n't\b|[✗✘❌]"
)
TIED = re.compile(r"(?i)\s[^.\n!?;]{1,30}\b(?:as well|too|equally)\b")  # "A fits, but B fits as well"
BREAK = re.compile(r"(?:\A|[).!?:;,\n\u2013\u2014→⇒∴>~-])[ #>*•]{0,8}\Z")  # where a sentence, or a part of one, begins
PLACES = {"second to last": -2, "last": -1} | {name: place for place, name in enumerate(ORDINALS)}
PLACE = r"[1-9](?:st|nd|rd|th)|" + "|".join(PLACES).replace(" ", "[ -]")
NUMBER = rf"(?:[1-9]|{'|'.join(SMALL[1:10])})\b"
BY_PLACE = re.compile(
    rf"(?i)(?<!\bmy )(?<!your )(?<!his )(?<!her )(?<!their )(?<!(?<!it)(?<!that)'s )\b(?:the )?({PLACE})(?: (?:"
    r"(?:answer )?(?:option|choice)|(one))\b(?! ?[:=]| (?:he|she|they|of)\b)(?=(?: (?:is|was) [(*]*((?-i:[A-Z]))\b)?)"
    rf"|(?=,? (?:or|and|nor) (?:the )?(?:{PLACE}) (?:option|choice)))"
    rf"|\b(?:option|choice) (number |no\. ?|#)?({NUMBER})(?![.:]\d| ?(?:[,&/-]|and|or) ?{NUMBER})"
)
"""An option that is named by its place: "the second option", "the last one", "option number three"."""
ONE_BEFORE = re.compile(
    r"(?i)(?:\A\W*|\b(?:answer|choice|option) (?:is|was|would be|must be|but)|\bI(?:'d|'ll| would| will)?"
    r" (?:say|think|guess|believe|pick|choose|select|prefer|go (?:with|for))(?: (?:that )?(?:it is|it's))?) ?\Z"
)
ONE_AFTER = re.compile(r"(?i)( is(?: the| not)* (?:correct|right|best|wrong)(?: (?:answer|one))?)?\W*?(?:[.!;\n]|\Z)")
"""What stands around "the second one" where it is an option."""
LOOKED_BACK = 120  # characters before a letter, so that a long reply does not take long
DENIED = re.compile(
    r" or$|\d (?:to|and)$| (?:not|(?:is|are|was|were|does|do|did|ca|could|would|should|has|wo)nt|no|nor|neither|without"
    r"|than|never|cannot|if|whether|unlike|instead of)(?: (?!(?:but|rather|instead|its|so|doubt)\b|¦)\S+){0,3}$"
)
DENIED_AFTER = re.compile(
    r" or\b| (?:to|and) \d| (?:(?:option|is|are|was|were|does|do|can|could|would|should|be) )*"
    r"(?:not|isnt|arent|wasnt|doesnt|cannot|wrong|incorrect|false|absent)\b"
)
"""What stands before and after an option's words that are not the answer; ¦ is the end of a clause."""


class _Mention(NamedTuple):
    """Letters that a reply mentions together, and their place in it, written as "(B)" or "B.", announced as chosen."""

    letters: set[str]
    start: int
    end: int
    marked: bool
    stated: bool


def choice(text: str, options: Sequence[str]) -> str | None:
    """The letter that a reply to a multiple-choice question chose, or None.

    In this order: the last stated conclusion ("answer: B", "I choose B", "B is correct", "so it is B."), of a list of
    options the one that alone is said to be right, the beginning of the reply, its last sentence if that is a letter, a
    letter after "option", one marked letter ("(B)", "B."), one option's words. Letters and words that are said to be
    wrong do not count. Where two different letters fit equally well, and where the letter is none of the options',
    nothing was chosen. "a dog" is the option that says so and not a choice of A; "a" alone is A.
    """
    text = answers.final(text)
    if normalise(text) in {normalise(option) for option in options} and not re.fullmatch(r"[\W_]*[A-Za-z][\W_]*", text):
        return _by_words(text, options)
    text = re.sub(r"~~.*?~~", " ", text)
    text = re.sub(r"_(?=(?:answer|option|choice|letter)\b)", " ", text)  # of JSON: "final_answer"
    text = re.sub(r"(?i)[\[(\"]((?:final )?answer|答案)[\])\"] ?(?!:)", r"\1: ", text)
    text = re.sub(r"(?m)^A ?: ?(?=[^\w\n]*[A-Z]\W*$)", "answer: ", text)
    text = _with_letters(text, options)
    for letter, option in zip(LETTERS, options, strict=False):  # "B. a blue car - yes" says yes to B
        bare, said = "" if letter in "AI" else f"|{letter}", re.escape(plain(option).strip(" ."))
        echo = rf"(?<!{WORD})(\(?(?i:{letter})[.):]+{bare})[\s*_\"'(,;=\u2013-]*(?i:{said})(?!\w)"
        text = re.sub(echo, r"\1", text) if said else text
    every = _mentions(text, options)
    found = [m for m in every if not (BAD.match(text, m.end) or _ends_with(text, m.start, NEGATED, OF_OTHERS, RANKED))]
    found = [m for m in found if m.start == found[0].start or not _ends_with(text, m.start, YOURS)]
    begin = [m for m in found[:1] if FILLER.fullmatch(text, 0, m.start) and not TOLD.match(text, m.end)]
    first = {min(m.letters): m for m in every[::-1] if m.marked and len(m.letters) == 1}
    listed, known = sorted(first.values(), key=lambda m: m.start), LETTERS[: len(options)]
    order = "".join(min(m.letters) for m in listed)
    ends = [*(m.start for m in listed[1:]), len(text)]
    parts = [(m, text[m.end : end]) for m, end in zip(listed, ends, strict=False)]
    right = [m for m, part in parts if RIGHT.match(text, m.end) or (AGREES.search(part) and not DISAGREES.search(part))]
    judged = [m for m, part in parts if m in right or DISAGREES.search(part)]
    is_list = order == known and not (begin and ALONE.match(text, begin[0].end))
    is_list |= 1 < len(listed) == len(judged) and order == "".join(sorted(order))  # a verdict on each of some options
    stated = [m for m in found if RIGHT.match(text, m.end) and not (is_list and m in listed)]
    stated += [m for m in found if m.stated]
    ending = [m for m in found if text[m.end - 1] == "." or ENDS.match(text, m.end)]
    stated += [m for m in ending if _ends_with(text, m.start, CONCLUDED)]
    announced = [m.end() for m in STATED.finditer(text) if not _ends_with(text, m.end(), NEGATED, OF_OTHERS, RANKED)]
    said = [(place, letter) for place in announced if (letter := _begins_with(text, place, options))]
    stated += [_Mention({letter}, place, place, marked=False, stated=True) for place, letter in said]
    stated.sort(key=lambda m: m.start)
    last = stated[-2 if stated and TIED.match(text, stated[-1].end) else -1 :]
    alone = [m for m in found if ALONE.match(text, m.end) and _ends_with(text, m.start, BREAK)]
    if is_list:
        ranks = [last, [m for m in alone if m.start > listed[-1].start][-1:], right]
        if not any(ranks):
            return None
    else:  # after a choice that runs on to the last option, that one was not chosen
        runs_on = 1 < len(order) < len(known) and known.endswith(order)
        mentioned = [m for m in found if _ends_with(text, m.start, MENTIONED)]
        ranks = [last, [*begin, *([] if runs_on else alone[-1:])], mentioned, [m for m in found if m.marked]]
    for rank in ranks:
        if letters := set().union(*(m.letters for m in rank)):
            return letters.pop() if len(letters) == 1 and letters <= {*known} else None
    return _by_words(text, options)


def _with_letters(text: str, options: Sequence[str]) -> str:
    """A text with "option B" for options that are named by their place: "the second option", "option number two"."""
    amounts = any(answers.is_amount(with_digits(one)) for one in options)  # "option 3" may be the one that says 3

    def named(m: re.Match[str]) -> str:
        name = (m[1] or m[5]).lower().replace("-", " ")
        place = PLACES[name] if name in PLACES else int(with_digits(name)[0]) - 1
        after = ONE_AFTER.match(text, m.end())
        is_option = not m[2] or (after and (after[1] or _ends_with(text, m.start(), ONE_BEFORE)))
        if not -len(options) <= place < len(options) or not is_option or (m[5] and not m[4] and amounts):
            return m[0]
        letter = LETTERS[: len(options)][place]
        return m[0] if m[3] not in (None, letter) else f"option {letter}"  # "the second choice is C" is a rank

    return BY_PLACE.sub(named, text)


def _mentions(text: str, options: Sequence[str]) -> list[_Mention]:
    """The letters in a text that stand for options, those that are joined by "and", "or" and the like in one.

    Also letters beyond the options where they are stated. Letters inside an option's words stand for nothing.
    """
    found: list[_Mention] = []
    letters = LETTERS[: len(options)]
    known = {one.strip().upper(): letter for one, letter in zip(options, letters, strict=False)}  # of options X, Y, Z
    known |= dict(zip(letters, letters, strict=True))
    worded = [plain(one).strip(" .") for one in options if re.search(r"(?i)\b[a-z]\W+\w|\w\W+[a-z]\b", one)]
    spans = (m.span() for each in worded for m in re.finditer(rf"(?i)(?<!\w){re.escape(each)}(?!\w)", text))
    inside = {place for span in spans for place in range(*span)}
    opening, closing = r"[(\[{\"'*_`]{0,9}", r"[)\]}\"'*_`]{0,9}[.):]?"
    announced = {m.end() for m in STATED.finditer(text)}
    after_it = rf"(?!{WORD}|['&-]{WORD}|[+#]|\.?[A-Za-z]\.)"
    for m in re.finditer(rf"(?<!{WORD})(?<!{WORD}\.)({opening})([A-Z{letters.lower()}])({closing}){after_it}", text):
        letter, after = m[2], text[m.end() : m.end() + LOOKED_BACK]
        named = MENTIONED.search(text, max(m.start() - LOOKED_BACK, 0), m.start())  # "Option A: ..." begins there
        ends = m[3].endswith(".") or bool(ENDS.match(after))
        in_place = "(" in m[1] or m[3].endswith(")") or _ends_with(text, named.start() if named else m.start(), BREAK)
        marked = (m[3].endswith((".", ")", ":")) and in_place) or ("*" in m[1] and "*" in m[3])
        stated = any(place in announced for place in range(m.start(), m.start(2) + 1))
        article = letter in "AIai" and not m[3] and (stated or not named or letter != "A") and not RIGHT.match(after)
        alone = not m.start() and ALONE.match(after)
        small = "(" in m[1] or stated or bool(named) or (not m.start() and (marked or not after.strip(" .*_")))
        if (
            m.start(2) in inside
            or (article and ARTICLE[letter.upper()].match(after))
            or (letter.islower() and not small and not (ends and _ends_with(text, m.start(), CONCLUDED)))
            or (letter.upper() not in known and not alone and not (stated and (marked or ends)))
        ):
            continue
        last = found[-1] if found else None
        new = _Mention({known.get(letter.upper(), letter)}, *m.span(), marked, stated)
        apart = last is None or last.letters & new.letters or text[last.end - 1] in ".:"
        if last is not None and not apart and JOINED.fullmatch(text, last.end, new.start):
            new = found.pop()._replace(letters=last.letters | new.letters, end=new.end, marked=marked or last.marked)
        found.append(new)
    return found


def _ends_with(text: str, end: int, *patterns: re.Pattern[str]) -> bool:
    """Whether a text up to `end` ends with one of the patterns."""
    return any(one.search(text, max(end - LOOKED_BACK, 0), end) for one in patterns)


def _bare(text: str) -> str:
    """A text as `normalise` makes it, without articles unless it has nothing else."""
    said = normalise(text)
    return " ".join(word for word in said.split() if word not in ("a", "an", "the")) or said


def _begins_with(text: str, place: int, options: Sequence[str]) -> str | None:
    """The option, of more than a letter, whose words stand at a place of a text; the longest one."""
    reply = f"{_bare(text[place : place + 2 * max(map(len, options)) + 9])} "
    known = {letter: _bare(option) for letter, option in zip(LETTERS, options, strict=False)}
    found = [x for x, option in known.items() if reply.startswith(f"{option} ") and not re.fullmatch("[a-z]?", option)]
    return max(found, key=lambda letter: len(known[letter]), default=None)


def _by_words(text: str, options: Sequence[str]) -> str | None:
    """The option whose words are the reply, or the only one whose words are in it and not denied.

    An option inside a longer one that stands there was not meant. Where all are numbers, the number counts.
    """
    for form in (normalise, _bare):
        whole = [letter for letter, option in zip(LETTERS, options, strict=False) if form(text) == form(option) != ""]
        if len(whole) == 1:
            return whole[0]
    reply, *said = map(with_digits, (text, *options))
    reply = " " + normalise(re.sub(r"[.;,:!?](?!\S)|[(\n]| [-\u2013\u2014] ", " ¦ ", plain(reply))) + " ¦ "
    places = [
        (place.start(), place.end(), letter)
        for letter, option in zip(LETTERS, map(normalise, said), strict=False)
        for place in re.finditer(" " + "(?: ¦)? ".join(map(re.escape, option.split())) + "(?= )", reply)
        if not re.fullmatch("[a-z]?", option)
        and (option not in ("yes", "no") or not place.start() or reply.startswith(" ¦", place.end()))  # not "no dog"
    ]
    within, longest = set[str](), (0, 0)
    for start, end, letter in sorted(places, key=lambda place: (place[0], -place[1])):
        longest = (start, end) if end > longest[1] else longest
        denied = _ends_with(reply, start, DENIED, OF_OTHERS) or DENIED_AFTER.match(reply, end)
        if longest == (start, end) and not denied:
            within.add(letter)
    if len({one.partition(" ")[2] for one in said}) == 1 and answers.is_amount(with_digits(text)):  # 3 people, 4 people
        said = [one.partition(" ")[0] for one in said]
    amounts = [(x, answers.quantity(one)) for x, one in zip(LETTERS, said, strict=False) if answers.is_amount(one)]
    if len(amounts) == len(options) and (not within or TOTAL.search(text)) and (found := answers.quantity(text)):
        value, kind, size, _ = found
        within = {
            x
            for x, one in amounts
            if one and (one[:2] == (value, kind) or (one[0] / one[2] == value / size and not (one[1] and kind)))
        }
    return within.pop() if len(within) == 1 else None
