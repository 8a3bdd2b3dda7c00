"""How a plan is shown on a screen."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from langdc.tools.plan import Planned
from langdc.training.memory import GIB

MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "grids", "encoders", "total")


def show(
    console: Console,
    planned: Sequence[Planned],
    gpus: int,
    memory: float | None = None,
    probed: dict | None = None,
) -> None:
    """Tokens and steps of every phase, memory per device by what it is for, what fits, and what is not known."""
    console.print(_what(planned))
    console.print(_memory(planned))
    if memory is not None:
        for each in planned:
            _fits(console, each, gpus, memory)
    for said in dict.fromkeys(said for each in planned for said in each.notes):
        console.print(f"Note: {said}.", style="dim", highlight=False)
    online = [each.plan["name"] for each in planned if each.plan["online"]]
    if online:
        console.print(
            f"Note: {', '.join(online)}: what the encoders put out is more than feature_memory, so each step encodes "
            "its own videos; features=DIR keeps it on a disk (data_prep/features.py --plan says how much).",
            style="dim",
            highlight=False,
        )
    if any(each.plan["assumed"] for each in planned):
        console.print("* assumed: its records are not here; --samples N says how many there will be.", style="dim")
    if probed is not None:
        each, device = probed["seconds_per_video_encoded"], probed["device"]
        console.print(f"Encoding once: {1000 * each:.0f} ms a video, on {device}.", highlight=False)
    elif all(each.plan["seconds"] is None for each in planned):
        console.print("Hours need a measurement: add --probe where weights and data are.", style="dim")


def _what(planned: Sequence[Planned]) -> Table:
    table = Table("phase", "samples", "steps", "batch", "tokens", "visual", "text", "caption", "hours", box=None)
    for each in planned:
        plan, tokens = each.plan, each.plan["tokens_per_sample"]
        seconds = plan["seconds"]
        star = "*" if plan["assumed"] else ""
        table.add_row(
            plan["name"],
            f"{plan['samples']:,}" if plan["samples"] else "?",
            f"{plan['steps']:,}" if plan["steps"] is not None else "?",
            str(plan["batch"]),
            *(f"{tokens[name]:,.0f}{star}" for name in ("total", "visual", "text", "caption")),
            "?" if seconds is None else f"{seconds / 3600:.2f}",
        )
    return table


def _memory(planned: Sequence[Planned]) -> Table:
    table = Table("GiB per device", "layout", "trained", *MEMORY, box=None)
    for each in planned:
        plan = each.plan
        trained = f"{plan['parameters']['trained'] / 1e6:,.1f}M"
        sizes = [f"{plan['memory'].get(name, 0) / GIB:.2f}" for name in MEMORY]
        table.add_row(plan["name"], plan["layout"], trained, *sizes)
    return table


def _fits(console: Console, each: Planned, gpus: int, memory: float) -> None:
    if not each.advice:
        return
    console.print(f"{each.plan['name']} on {gpus} x {memory:g} GiB: {each.advice}", highlight=False)
    table = Table("layout", "largest micro-batch", "micro-batch", "accumulation", box=None)
    for choice in each.choices:
        numbers = (choice.largest, choice.micro_batch, choice.accumulation)
        table.add_row(f"  {choice.layout.name}", *map(str, numbers))
    if each.choices:
        console.print(table, style="dim")
