"""Progress where there is no terminal: a line now and then, which says how fast it goes and what is left."""

import logging

import pytest

from langdc import log
from langdc.log import pace, track


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_a_line_every_few_seconds_without_a_terminal(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(0, 1000, 20))  # each look at it is 20 seconds later
    monkeypatch.setattr(log.time, "monotonic", lambda: float(next(clock)))
    kept = _Kept()
    logger = log.get_logger("langdc.log")
    logger.addHandler(kept)
    try:
        assert list(track("abcd", 4, "Encoding videos")) == list("abcd")
    finally:
        logger.removeHandler(kept)
    assert kept.lines == [
        "Encoding videos: 2 of 4, 0.05 a second, 0:00:40 left",
        "Encoding videos: 4 of 4, 0.05 a second, 0:00:00 left",
    ]


def test_the_pace_before_anything_is_done():
    assert pace(0, 5, 3.0) == "0 a second, unknown time left"
