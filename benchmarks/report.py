"""How benchmarks say what they found: a table on the screen, the same as a section of a page, and the machine."""

import platform
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from langdc.files import write_whole

console = Console(width=max(Console().width, 130))


def machine(device: str) -> str:
    """The hardware and versions, in a line."""
    name = torch.cuda.get_device_name() if device != "cpu" else _processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], head: str) -> None:
    """Print the table."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(head, highlight=False)


def write(page: Path, title: str, head: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Put the table into a page as the section `title`, in place of the one that it had; the rest stays."""
    lines = [" | ".join(cells) for cells in (columns, ["---"] * len(columns), *rows)]
    section = f"## {title}\n\n{head}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"
    before = page.read_text() if page.is_file() else "# Benchmarks\n"
    old = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    found = old.search(before)
    if found is None:
        write_whole(page, f"{before.rstrip()}\n\n{section}")
    else:
        rest = before[found.end() :]
        write_whole(page, before[: found.start()] + section + (f"\n{rest}" if rest else ""))
