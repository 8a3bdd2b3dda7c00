"""`langdc data benchmark NAME --root DIR`: whether the folder of a benchmark is complete, and its questions as records.

Prints which annotation files and videos are missing, how to get them, and their licence. Without NAME: all benchmarks.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from langdc.data.records import listed, write_records
from langdc.evaluate import tasks
from langdc.evaluate.tasks.base import Benchmark
from langdc.jsonl import check_output
from langdc.log import screen


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all is there, 1 when videos are missing."""
    parser = argparse.ArgumentParser(prog="langdc data benchmark", description=__doc__)
    parser.add_argument("name", nargs="?", help="a benchmark, as the task is called")
    parser.add_argument("--root", help="its folder")
    parser.add_argument("--out", type=Path, help="write its questions as records to this file")
    options, console = parser.parse_args(argv), screen()
    if options.name is None:
        table = Table("name", "benchmark", "licence", "run", box=None, pad_edge=False)
        for name in _benchmarks():
            listing: Any = tasks.tasks.get(name).source  # pyright: ignore[reportFunctionMemberAccess]
            table.add_row(name, listing.title, listing.licence, listing.run)
        console.print(table)
        return 0
    kind: Any = tasks.tasks.get(options.name)
    if not issubclass(kind, Benchmark):
        raise ValueError(f"{options.name} is no published benchmark. There are: {', '.join(_benchmarks())}.")
    source = kind.source
    console.print(f"{source.title}, {source.page}\nLicence: {source.licence}\nFields as in: {source.fields_as}")
    if options.root is None:
        raise ValueError(f"Say where its files are: --root DIR. {source.get}")
    if options.out is not None:
        check_output(options.out)
    task = kind(root=options.root)
    questions = sum(len(record.questions) for record in task.records)
    console.print(f"{len(task.records)} videos or clips, {questions} questions.")
    if options.out is not None:
        paths = [Path(os.path.relpath(task.path(record), options.out.parent)).as_posix() for record in task.records]
        records = zip(task.records, paths, strict=True)
        write_records(options.out, [record.model_copy(update={"video": path}) for record, path in records])
        console.print(f"Written: {options.out}")
    missing = task.missing()
    if not missing:
        console.print("All videos are there.")
        return 0
    console.print(f"{listed(f'{len(missing)} videos are missing', list(map(str, missing)))}\n{source.get}")
    return 1


def _benchmarks() -> list[str]:
    return [name for name in tasks.tasks.names() if issubclass(tasks.tasks.get(name), Benchmark)]  # pyright: ignore
