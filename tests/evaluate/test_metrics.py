"""Metrics of open questions: what counts as the answer, and what does not."""

import pytest

from langdc.evaluate.metrics import metrics


def _score(metric: str | dict, answer: str, text: str) -> float:
    built = metrics.of(metric)
    found = built.parse(answer, text)
    return 0.0 if found is None else built.score(answer, found)


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("a dog", "A dog.", True), ("a dog", "dog", False), ("3.5", "35", False), ("1:30", "130", False),
        ("-5", "5", False), ("-5", "−5", True), ("1/2", "12", False), ("½", "1/2", True), ("5²", "52", False),
        ("5", "<think>4?</think> 5", True), ("?", "?", True), ("?", "!", False), ("c++", "c", False),
        ("50%", "50 %", True), ("50%", "50", False), ("1,200", "1200", True), ("5", "<think>5", False),
    ],
)  # fmt: skip
def test_exact(answer: str, text: str, right: bool) -> None:
    assert _score("exact", answer, text) == right


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("a dog", "It is the dog.", True), ("dog", "a hotdog", False), ("red car", "the car is red", False),
        ("red car", "a red car and a dog", True), ("3.5", "35 m", False), ("3.5", "about 3.5 m", True),
        ("1:30", "at 1:30", True), ("1:30", "130", False), ("-5", "it is 5", False), ("two", "2 dogs", True),
        ("yes", "No, yes", False), ("no", "No, there is not", True), ("dog", "", False), ("dog", "...", False),
    ],
)  # fmt: skip
def test_contains(answer: str, text: str, right: bool) -> None:
    assert _score("contains", answer, text) == right


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("100", "one hundred", True), ("0.5", "1/2", True), ("1/2", "0.5", True), ("½", "half", True),
        ("1½", "1.5", True), ("-5", "5", False), ("-5", "minus five", True), ("5", "-5", False), ("3.5", "35", False),
        ("1200", "1,200", True), ("1.5 million", "1500000", True), ("12", "a dozen", True),
        ("90", "1:30", True), ("1:30", "90 seconds", True), ("1:30", "1.5 min", True), ("1:30", "130", False),
        ("1:30", "1 minute and 30 seconds", True), ("1:30", "1m30s", True), ("1:30:00", "an hour", False),
        ("1:30:00", "1.5 hours", True), ("1h 20m", "80 minutes", True), ("2 min", "2", True), ("2", "2 min", True),
        ("0.5 m", "50 cm", True), ("5 m", "5 s", False), ("5 km/h", "5 m/s", False), ("3 pm", "3 a.m.", False),
        ("5 feet 6 inches", "66 inches", True), ("20 °C", "20 °F", False), ("50%", "50 percent", True),
        ("5", "There are 3 red and 2 blue cars, so 5 in total.", True), ("5", "3 + 2 = 5", True),
        ("4", "not 3 but 4", True), ("7", r"\boxed{7}", True), ("7", "<think>6?</think>7", True),
        ("2", "2 or 3", False), ("2", "2-3", False), ("5", "none that I see", False),
        ("2.5", "two point five", True), ("0.75", "three quarters", True),
        ("3", "There are 3 red cars and 2 blue cars.", False), ("2", "two or three", False), ("3", "3,5", False),
        ("3.5", "3,5", False), ("1", "No one is there.", False), ("300", "3 × 10²", True), ("21", "twenty-one", True),
        ("20", "the twenty-first", False), ("6", "half a dozen", True), ("3", "3D", False),
        ("1.5 h", "one and a half hours", True),
        ("0.3", "0.1 + 0.2 = 0.3", True), ("5 km/h", "5 mph", False), ("5 mph", "5 km/h", False),
        ("5 km/h", "It is 5 knots.", False), ("10 mph", "16.09344 km/h", True), ("5 mph", "5 miles per hour", True),
        ("5 km/h", "5 kilometers per hour", True), ("5 km/h", "5", True), ("5", "5 mph", True),
        ("5 mph", "5 mph", True), ("5 m", "5 yards", False), ("5 yards", "5 m", False), ("10 yards", "30 feet", True),
        ("5 euros", "5 dollars", False), ("5 dollars", "$5", True), ("5 s", "5 dollars", False), ("5 m", "5 m²", False),
        ("5 m", "5 square meters", False), ("5 m", "5 furlongs", False), ("5 furlongs", "5 km", False),
        ("5 furlongs", "5 furlongs", True), ("5 s", "The answer is 5, as for 3 dogs", True),
        ("5 m", "5 in total", True), ("5 m", "5 in total.", True), ("5 s", "exactly 5 only", True),
        ("5 s", "5 frames", False), ("5 dogs", "5 animals", True), ("2 years", "24 months", True),
        ("5 m", "It is 5 furlongs long.", False), ("5 m", "It is 5 in length.", True),
        ("5", "It is 5 furlongs long.", True),
        ("3", "There are 3 widgets there", True), ("5 s", "It took 5 as I count.", True),
        ("5 m", "5 meters per second", False), ("5 m/lap", "5 m", False), ("5 people", "There are 5 people.", True),
    ],
)  # fmt: skip
def test_numeric(answer: str, text: str, right: bool) -> None:
    assert _score("numeric", answer, text) == right


@pytest.mark.parametrize(
    ("settings", "answer", "text", "right"),
    [
        ({"tolerance": 1}, "10", "11", True), ({"tolerance": 1}, "10", "11.1", False),
        ({"tolerance": 5}, "1:30", "1:35", True), ({"tolerance": 5}, "1:30", "1:36", False),
        ({"tolerance": 0.1}, "1.5 min", "96 s", True), ({"tolerance": 0.1}, "1.5 min", "97 s", False),
        ({"relative": 0.1}, "200", "220", True), ({"relative": 0.1}, "200", "221", False),
        ({"relative": 0.1}, "-200", "-180", True), ({"tolerance": 1}, "-1", "1", False),
    ],
)  # fmt: skip
def test_numbers_may_be_near(settings: dict, answer: str, text: str, right: bool) -> None:
    assert _score({"name": "numeric", **settings}, answer, text) == right


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("exat", "Unknown metric 'exat'. Did you mean 'exact'"),
        ({"name": "numeric", "tolerence": 1}, "no setting 'tolerence'. Did you mean 'tolerance'"),
        ({"name": "numeric", "tolerance": -1}, "tolerance=-1; give a number that is 0 or more"),
        ({"name": "numeric", "relative": "5 %"}, "relative='5 %'; allowed are finite numbers"),
        ({"name": "numeric", "relative": float("nan")}, "relative=nan; allowed are finite numbers"),
    ],
)
def test_settings_that_cannot_work_are_named(given: str | dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.of(given)
