"""Seconds per stage of an answer, measured where the work is done and kept by whoever listens.

with StageTimer(device) as timer:
    with stage("encode"):
        ...
        with stage("preprocess"):  # not counted under "encode" again
            ...
timer.seconds == {"preprocess": ..., "encode": ...}
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from langdc.devices import synchronize

STAGES = ("read", "select", "decode", "preprocess", "encode", "saliency", "compress", "prefill", "generate")
"""What answering a question is made of. "read": stored encoder outputs, in place of decoding and encoding; "select":
choosing frames for the question; "saliency": what an encoder attends to, for the methods that choose by it."""

_listening: ContextVar[tuple["StageTimer", ...]] = ContextVar("listening", default=())
# seconds of the stages inside the one that is under way
_inner: ContextVar[list[float] | None] = ContextVar("inner", default=None)


class StageTimer:
    """Listens to the stages inside its `with` block and sums their seconds; timers inside one another all hear them."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> "StageTimer":
        _listening.set((*_listening.get(), self))
        return self

    def __exit__(self, *error: object) -> None:
        _listening.set(tuple(timer for timer in _listening.get() if timer is not self))


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time what is inside for all who listen, also when it fails; nothing is waited for where nobody does.

    The accelerator is waited for at both ends. Seconds of a stage inside another count for the inner one alone.
    """
    listening = _listening.get()
    if not listening:
        yield
        return
    device = listening[-1].device
    synchronize(device)
    started, inner = time.perf_counter(), [0.0]
    token = _inner.set(inner)
    try:
        yield
    finally:
        synchronize(device)
        _inner.reset(token)
        note(name, time.perf_counter() - started, inner[0])


def note(name: str, seconds: float, inside: float = 0.0) -> None:
    """Tell all who listen of seconds that were measured otherwise, less those of stages `inside`."""
    around = _inner.get()
    if around is not None:
        around[0] += seconds
    for timer in _listening.get():
        timer.seconds[name] = timer.seconds.get(name, 0.0) + seconds - inside
