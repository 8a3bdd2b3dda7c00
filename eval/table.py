"""python eval/table.py RUN [RUN ...] [--reference ROW] [--html FILE]

Print the table of one or several evaluations (output folders of `eval/run.py`) and write it beside the first as
table.csv, table.md and report.html, one page with all plots that needs no network. Only the files are read, no model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from langdc.evaluation.adaptive import Pictures
from langdc.evaluation.cost import loop_cost
from langdc.evaluation.notes import notes
from langdc.evaluation.page import page
from langdc.evaluation.report import APART, as_csv, as_markdown, split, table
from langdc.evaluation.results import RunFolder
from langdc.evaluation.rows import Row, read_rows
from langdc.jsonl import write_text

ABOUT = ("exact captions", "cue recall", "density rho", "train ")
"""How columns begin that say what a row's model is like, and nothing of cost."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print and write; 0 when done, 2 for a mistake in what was given."""
    options = _parser().parse_args(argv)
    try:
        rows = read_rows(options.runs, options.reference)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 200)
    equal, apart = split(rows)
    console.print(*(as_rich(equal) if equal else ()))
    if apart:
        console.print(APART, style="yellow")
        console.print(*as_rich(apart))
    unfinished = [row.name for row in rows if not row.finished]
    if unfinished:
        console.print(
            f"Unfinished: {', '.join(unfinished)}. Their figures are of the questions asked so far.", style="yellow"
        )
    for note in notes(rows):
        console.print(note, style="yellow", highlight=False)
    for run in options.runs:
        if (cost := loop_cost(RunFolder.read(run).sessions())) is not None:
            console.print(f"{run}: {cost}", style="dim", highlight=False)
    html = options.html or options.runs[0] / "report.html"
    html.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.runs[0] / "table.csv", as_csv(rows))
    write_text(options.runs[0] / "table.md", as_markdown(rows))
    write_text(html, page(rows, None if options.no_frames else lambda row: Pictures(row.header)))
    console.print(f"Report: {html}", soft_wrap=True, highlight=False)
    return 0


def as_rich(rows: Sequence[Row]) -> list[Table]:
    """The table in parts, since one is too wide for a terminal: accuracy by kind; cost and comparison; the rest."""
    titles, lines = table(rows)
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.kinds))
    judged = [title for title in ("judged %", "judge's score") if title in titles]
    accuracy = ["row", "accuracy %", "95 % interval", *judged, *kinds, "failed", "unparsed"]
    about = [title for title in titles if title.startswith(ABOUT)]
    cost = [title for title in titles if title == "row" or title not in (*accuracy, *about)]
    found = [_part("Accuracy", accuracy, titles, lines), _part("Tokens, cost, comparison", cost, titles, lines[:-1])]
    return [*found, _part("Captions, training", ["row", *about], titles, lines[:-1])] if about else found


def _part(name: str, wanted: list[str], titles: list[str], lines: list) -> Table:
    found = Table(title=name, title_justify="left")
    for title in wanted:
        left, least = title in ("row", "against reference"), len("(uncalibrated)") if title == "row" else None
        found.add_column(title.replace("_", " "), justify="left" if left else "right", min_width=least)
    for number, line in enumerate(lines):
        by_title = dict(zip(titles, line, strict=True))
        chance = by_title["row"].value is None
        found.add_row(*(by_title[title].text for title in wanted), style="dim" if chance else "")
        if number + 2 == len(lines) and lines[-1][0].value is None:
            found.add_section()
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eval/table.py", description="Tables and a page of evaluations.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of eval/run.py")
    parser.add_argument("--reference", metavar="ROW", help="the row to compare with (default: the config's)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where the page goes (default: RUN/report.html)")
    parser.add_argument("--no-frames", action="store_true", help="leave frames of the videos out of the page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
