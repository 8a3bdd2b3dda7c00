"""How benchmarks say what they found: a table on the screen, the same as a section of a page, and the machine."""

import argparse
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from langdc.jsonl import write_text

console = Console(width=max(Console().width, 130), markup=False, emoji=False)


def arguments(described: str | None, frames: Sequence[int]) -> argparse.ArgumentParser:
    """The options that every benchmark has; `described` is its docstring, `frames` the numbers of frames by default."""
    parser = argparse.ArgumentParser(description=(described or "").partition("\n\n")[2])
    parser.add_argument("--frames", nargs="+", type=int, default=list(frames), help="numbers of frames")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    return parser


def command(file: str, argv: Sequence[str] | None) -> str:
    """What was typed, as Markdown."""
    return f"`python benchmarks/{Path(file).name} {' '.join(argv if argv is not None else sys.argv[1:])}`"


def follow(rows: Iterable[Sequence[str]]) -> list[Sequence[str]]:
    """The rows, each printed as it comes."""
    found = []
    for row in rows:
        console.print(*row, sep="  ", style="dim", highlight=False)
        found.append(row)
    return found


def machine(device: str) -> str:
    """The hardware and versions, in a line."""
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    name = _processor() if named is None else named(device)
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
        write_text(page, f"{before.rstrip()}\n\n{section}")
    else:
        rest = before[found.end() :]
        write_text(page, before[: found.start()] + section + (f"\n{rest}" if rest else ""))
