"""python data_prep/sample.py --out data/sample  # makes the sample set.

That is mp4 files of moving shapes with captions and questions, and images, in the project's record
format. Takes about a minute on two cores; interrupted, the same command goes on. Prints the accuracy that always giving
the most frequent answer reaches on the test questions, for each kind.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from langdc.data.records import read_records
from langdc.sample.dataset import IMAGES, VIDEOS, majority_chance, make_dataset
from langdc.sample.questions import TARGET_KINDS


def main(argv: Sequence[str] | None = None) -> int:
    """Make the set that the arguments describe; 0 when it is there, 2 when it cannot be made."""
    options = _parser().parse_args(argv)
    out = Console()
    out.print(
        f"Sample set in {options.out}: {options.train} training videos, {options.test} test videos, "
        f"{options.images} images (seed {options.seed}).",
        soft_wrap=True,
    )
    try:
        videos = {"train": options.train, "test": options.test}
        made = make_dataset(options.out, videos, options.images, options.seed, options.workers)
        out.print("Made." if made else "It is there already; nothing to do.")
        if options.test:
            out.print(_chance_table(options.out / "test.jsonl"))
    except ValueError as error:
        Console(stderr=True).print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        out.print("Interrupted. The same command goes on where it stopped.")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="data_prep/sample.py", description="Make the sample set.")
    parser.add_argument("--out", type=Path, default=Path("data/sample"), help="folder to make (default: data/sample)")
    parser.add_argument("--train", type=int, default=VIDEOS["train"], help="training videos (default: %(default)s)")
    parser.add_argument("--test", type=int, default=VIDEOS["test"], help="held-out videos (default: %(default)s)")
    parser.add_argument("--images", type=int, default=IMAGES, help="training images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same files (default: 0)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    return parser


def _chance_table(path: Path) -> Table:
    records = read_records(path)
    table = Table("question", "asked", "majority-class chance", "target", title="Test questions")
    for kind, chance in majority_chance(records).items():
        asked = sum(question.kind == kind for record in records for question in record.questions)
        table.add_row(kind, str(asked), f"{chance:.3f}", "yes" if kind in TARGET_KINDS else "")
    return table


if __name__ == "__main__":
    sys.exit(main())
