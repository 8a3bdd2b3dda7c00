"""How replies to open questions are read and scored, by name: `exact`, `contains`, `numeric`, `judge`."""

from typing import ClassVar

from langdc.evaluate.answers import normalise, number, quantity, without_thinking, words
from langdc.registry import Registry

ARTICLES = ("a", "an", "the")
YES_NO = ("yes", "no")
ROUNDING = 1e-9  # difference of two numbers that comes from floating point alone


class Metric:
    """Reads a reply to an open question and scores what it read against the answer."""

    judged: ClassVar[bool] = False
    """Whether a language model scores the reply, after all replies are given."""

    def parse(self, answer: str, text: str) -> str | None:
        """What a reply says; None where it says nothing. `answer` is empty where it is not known."""
        return without_thinking(text).strip() or None

    def score(self, answer: str, found: str) -> float:
        """What that is worth, from 0 to 1."""
        raise NotImplementedError(f"{type(self).__name__} scores no reply alone")


metrics: Registry[Metric] = Registry("metric", base=Metric)


@metrics.register("exact")
class Exact(Metric):
    """1 when the reply is the answer, without case, extra spaces and punctuation but for the signs of numbers."""

    def parse(self, answer: str, text: str) -> str | None:
        said = without_thinking(text)
        return normalise(said) or (said.strip() if answer and not normalise(answer) else "") or None

    def score(self, answer: str, found: str) -> float:
        return float(found == (normalise(answer) or answer.strip()))


@metrics.register("contains")
class Contains(Metric):
    """1 when the answer's words stand in a row in the reply, articles left out; of yes and no, the first one counts."""

    @staticmethod
    def words(text: str) -> list[str]:
        """The words of a text without articles, unless it has nothing else."""
        found = words(text)
        return [word for word in found if word not in ARTICLES] or found

    def parse(self, answer: str, text: str) -> str | None:
        return " ".join(self.words(text)) or None

    def score(self, answer: str, found: str) -> float:
        reply, wanted = found.split(), self.words(answer)
        if len(wanted) == 1 and wanted[0] in YES_NO:
            return float(next((word for word in reply if word in YES_NO), None) == wanted[0])
        return float(any(reply[first : first + len(wanted)] == wanted for first in range(len(reply))))


@metrics.register("numeric")
class Numeric(Metric):
    """1 when the reply's number is the answer's: within `tolerance`, in the answer's unit, or `relative` to the answer.

    Numbers are read by `answers.quantity`: "-5", "1:30", "one hundred", "1/2", "1.5 km". Units are converted where both
    name one; where one of them names none, the other's is meant. A unit that is not known is no other one.
    """

    def __init__(self, tolerance: float = 0.0, relative: float = 0.0) -> None:
        for name, value in {"tolerance": tolerance, "relative": relative}.items():
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"The metric 'numeric' has {name}={value!r}; give a number that is 0 or more.")
        self.tolerance, self.relative = tolerance, relative

    def parse(self, answer: str, text: str) -> str | None:
        """The number in the answer's unit; with the name of its dimension where that is another one."""
        if (said := quantity(text)) is None:
            return None
        (value, kind, size, word), (_, wanted, unit, unknown) = said, quantity(answer) or said
        other = kind if wanted or unknown else ""
        if wanted and not kind:
            other = word
        if other and other != wanted:
            return f"{value / size:.12g} {other}"
        return f"{value / (unit if kind and wanted else size):.12g}"

    def score(self, answer: str, found: str) -> float:
        true = number(answer)
        if true is None or " " in found:
            return 0.0
        near = max(self.tolerance, self.relative * abs(true)) + ROUNDING * max(1, abs(true))
        return float(abs(float(found) - true) <= near)


@metrics.register("judge")
class Judged(Metric):
    """What the evaluation's `judge` says of the reply: 1 for yes, 0 for no."""

    judged = True
