"""What the project asks of a card, and what a run of `make gpu` measured: a table, met or missed as it is."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Steps = Mapping[str, Any]
"""The "steps" of the JSON of `scripts/gpu.py`."""
LARGEST_POOL, VIDEOGPT_PLUS = "pool, 12 x 12 and 8 x 8", "videogpt_plus"


def asked(steps: Steps) -> list[dict[str, Any]]:
    """Lines {"what", "asked", "measured", "result"}; where a figure is lacking, "not measured"."""
    lines = []
    for what, most, measured in (*_answers(steps), *_reading(steps), *_training(steps)):
        result = "not measured" if measured is None else "met" if measured <= most else "missed"
        lines.append({"what": what, "asked": f"at most {most:g}", "measured": measured, "result": result})
    for what, least, measured in _utilisation(steps):
        result = "not measured" if measured is None else "met" if measured >= least else "missed"
        lines.append({"what": what, "asked": f"at least {least:g}", "measured": measured, "result": result})
    return lines


def _found(steps: Steps, step: str, table: str, **where: Any) -> list[dict[str, Any]]:
    """The lines of a table that have these values."""
    lines: Sequence[dict[str, Any]] = steps.get(step, {}).get("tables", {}).get(table, [])
    return [line for line in lines if all(line.get(name) == value for name, value in where.items())]


def _value(lines: list[dict[str, Any]], name: str) -> float | None:
    """A figure of the only line; None where there is none."""
    try:
        return float(lines[0][name])
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


Asked = Iterator[tuple[str, float, float | None]]


def _answers(steps: Steps) -> Asked:
    def of(name: str, videos: int, figure: str) -> float | None:
        return _value(_found(steps, "ask", "times", compressor=name, videos=videos), figure)

    for videos, most in ((1, 80), (8, 25)):
        batch = of("langdc, 59", videos, "compress ms")
        yield f"compress, captions of 59, ms per video of {videos}", most, _ratio(batch, videos)
    for name in (LARGEST_POOL, VIDEOGPT_PLUS):
        for videos, most in ((8, 0.9), (1, 1.5)):
            ratio = _ratio(of("langdc, 59", videos, "first token ms"), of(name, videos, "first token ms"))
            yield f"first token, langdc / {name}, {videos} videos", most, ratio
    yield "a reply token / its floor, 1 video", 3, of("langdc, 59", 1, "reply token / floor")


def _reading(steps: Steps) -> Asked:
    def of(frames: int, how: str, figure: str) -> float | None:
        lines = _found(steps, "read", "first token", frames=str(frames))
        return _value([line for line in lines if line["how"].startswith(how)], figure)

    for frames, most in ((1024, 0.9), (2048, 0.65)):
        for how in ("flexreduc", "plain"):
            yield f"{how} / its floor, {frames} frames", 1.5, of(frames, how, "reading / floor")
        taken = of(frames, "flexreduc", "first token s"), of(frames, "plain", "first token s")
        yield f"flexreduc / plain, {frames} frames", most, _ratio(*taken)
    shares = [
        (float("inf") if share == "nothing saved" else float(share.rstrip(" %")), line["how"], line["frames"])
        for line in _found(steps, "read", "first token")
        if (share := line.get("share of saving", "-")) != "-"
    ]
    worst = max(shares, default=(None, "any method", "all"))
    yield f"the largest own cost in % of what is saved ({worst[1]}, {worst[2]} frames)", 5, worst[0]


def _training(steps: Steps) -> Asked:
    for stage in ("2b", "3"):
        starts = [line for line in _found(steps, "train", "steps", stage=stage) if "start s" in line]
        yield f"a start of stage {stage}, s", 15, _value(starts, "start s")
    figures = {"time": "step s", "memory above weights and optimizer": "GiB above weights and optimizer"}
    for (what, figure), most in zip(figures.items(), (0.5, 0.45), strict=True):
        quarter, whole = (
            _value(_found(steps, "lora", "steps", checkpointing="no", keep=keep), figure) for keep in (0.25, 1.0)
        )
        yield f"LoRA step, keep 0.25 / keep 1: {what}", most, _ratio(quarter, whole)


def _utilisation(steps: Steps) -> Asked:
    for stage in ("2b", "3"):
        found = [_value([line], "MFU %") for line in _found(steps, "train", "steps", stage=stage)]
        best = max((value for value in found if value is not None), default=None)
        yield f"MFU of stage {stage} in %, the best micro-batch", 40, best
