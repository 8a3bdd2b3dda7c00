"""The commands `langdc eval` and `langdc report`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import rich.table

from langdc import config, jsonl
from langdc.distributed import is_main_process, start
from langdc.evaluate import tasks
from langdc.evaluate.adaptive import Pictures
from langdc.evaluate.comparison import read_results
from langdc.evaluate.folder import EvalFolder
from langdc.evaluate.judge import Judge
from langdc.evaluate.loop import evaluate
from langdc.evaluate.notes import notes
from langdc.evaluate.page import curves, page
from langdc.evaluate.published import check_published
from langdc.evaluate.settings import EvalConfig
from langdc.evaluate.tables import MISMATCH, OVER_SEEDS, Table, as_csv, as_markdown
from langdc.log import screen
from langdc.tools.options import add_device, add_outside, place

DEFAULT = "sample/eval"
ABOUT_MODEL = ("exact captions", "cue recall", "density rho", "train ")
"""Beginnings of the titles of columns about an entry's model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; 0 when all is done, 1 when an answer failed or awaits the judge. Errors are raised."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="langdc eval", description="Evaluate models on a task; the same command resumes after an interruption."
    )
    parser.add_argument("settings", nargs="*", metavar="CONFIG key=value", help="a config, and settings as limit=20")
    parser.add_argument("--config", metavar="FILE", help="the config, if it is not given as the first argument")
    add_device(parser)
    add_outside(parser)
    parser.add_argument("--retry-failed", action="store_true", help="ask again what failed before")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # given by the deepspeed launcher
    options = parser.parse_intermixed_args(argv)
    given = [text for text in [options.config, *options.settings] if text and "=" not in text] or [DEFAULT]
    if len(given) > 1:
        raise ValueError(f"Give one config, as langdc eval sample/eval; given: {', '.join(given)}.")
    start()
    overrides = [text for text in options.settings if text not in given]
    overrides += [f"{name}={value}" for name, value in place(options).items()]
    overrides += ["allow_outside=true"] if options.allow_outside else []
    settings = config.load(EvalConfig, given[0], overrides)
    task = tasks.build_task(settings.task, settings.allow_outside)
    check_published(settings, task)
    judge = Judge.of(settings.judge, task, settings.output)
    folder = evaluate(settings, task, ["langdc", "eval", *argv], judge=judge, retry_failed=options.retry_failed)
    return _outcome(folder, judge)


def _outcome(folder: EvalFolder, judge: Judge | None) -> int:
    """Say what is left to do; the exit code."""
    failed = folder.failures
    if not is_main_process():
        return 1 if failed else 0
    if failed:
        screen(stderr=True).print(
            f"{failed} answers failed and count as wrong; their reasons are in {folder.directory}/results. "
            "Once they are dealt with, --retry-failed asks again."
        )
    waiting = judge.unjudged(folder) if judge is not None else 0
    if waiting:
        print(f"{waiting} answers are not judged yet. They stay; the same command asks again.", file=sys.stderr)
    if (handed := folder.directory / "submission").is_dir():
        screen().print(f"Some questions have no answer and are not scored; the replies to hand in are in {handed}.")
    screen().print(f"All entries are in {folder.directory}. Tables and a page: langdc report {folder.directory}")
    return 1 if failed or waiting else 0


# ---- report


ON_ANY = "#7d8590"
"""A grey that can be read on light and on dark pages."""


def report(argv: Sequence[str] | None = None) -> int:
    """Print the table of evaluations and write table.csv, table.md, report.html and, of a sweep, curves.svg; only files
    are read, no model.
    """
    parser = argparse.ArgumentParser(prog="langdc report", description="Tables and a page of evaluations.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of langdc eval")
    parser.add_argument("--reference", metavar="ENTRY", help="the entry to compare with (default: the config's)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where the page goes (default: RUN/report.html)")
    parser.add_argument("--no-frames", action="store_true", help="leave frames of the videos out of the page")
    options = parser.parse_args(argv)
    results, first = read_results(options.runs, options.reference), options.runs[0]
    path = options.html or first / "report.html"
    for file in (first / "table.csv", first / "table.md", path):
        jsonl.check_output(file)
    console = screen(soft_wrap=False, width=None if sys.stdout.isatty() else 200)
    equal, apart = Table.by_budget(results)
    console.print(*(_rich(equal) if equal else ()))
    if apart:
        console.print(MISMATCH, style="yellow")
        console.print(*_rich(apart))
    if seeds := Table.over_seeds(results):
        console.print(_part("Over seeds", seeds.titles, seeds), OVER_SEEDS)
    unfinished = [result.name for result in results if not result.finished]
    if unfinished:
        text = f"Unfinished: {', '.join(unfinished)}. Their figures are of the questions asked so far."
        console.print(text, style="yellow")
    for note in notes(results):
        console.print(note, style="yellow")
    for folder in options.runs:
        if cost := EvalFolder.read(folder).loop_cost():
            console.print(f"{folder}: {cost}", style="dim")
    path.parent.mkdir(parents=True, exist_ok=True)
    jsonl.write_text(first / "table.csv", as_csv(results))
    jsonl.write_text(first / "table.md", as_markdown(results))
    jsonl.write_text(path, page(results, None if options.no_frames else lambda one: Pictures(one.header)))
    drawn = {f"curves{f'-{n}' * (n > 1)}.svg": svg for n, (_, svg) in enumerate(curves(results), 1)}
    for name, svg in drawn.items():
        jsonl.write_text(first / name, svg.replace("<svg ", f'<svg style="color:{ON_ANY}" ', 1))
    for file in (first / "curves.svg", *first.glob("curves-[1-9]*.svg")):
        if file.name not in drawn:  # of other results
            file.unlink(missing_ok=True)
    console.print(f"Report: {path}", soft_wrap=True)
    return 0


def _rich(table: Table) -> list[rich.table.Table]:
    """The table in parts, since one is too wide for a terminal: accuracy by kind; cost and comparison; the rest."""
    accuracy = ["entry", "accuracy %", "95 % interval", "judged %", "judge's score"]
    accuracy += [title for title in table.titles if title.startswith(("group ", "kind "))] + ["failed", "unparsed"]
    about = ["entry", *(title for title in table.titles if title.startswith(ABOUT_MODEL))]
    cost = ["entry", *(title for title in table.titles if title not in (*accuracy, *about))]
    parts = [_part("Accuracy", accuracy, table, chance=True), _part("Tokens, cost, comparison", cost, table)]
    return [*parts, _part("Captions, training", about, table)] if len(about) > 1 else parts


def _part(name: str, titles: Sequence[str], table: Table, chance: bool = False) -> rich.table.Table:
    """Some columns of a table, as far as it has them."""
    found = rich.table.Table(title=name, title_justify="left")
    columns = [table.titles.index(title) for title in titles if title in table.titles]
    for column in columns:
        left = table.titles[column] in ("entry", "against random", "against reference")
        width = len("(uncalibrated)") if table.titles[column] == "entry" else None
        found.add_column(table.headings[column], justify="left" if left else "right", min_width=width)
    for line in table.lines:
        found.add_row(*(line[column].text for column in columns))
    if chance:
        found.add_section()
        found.add_row(*(table.chance[column].text for column in columns), style="dim")
    return found
