"""`langdc data sample`: make the sample set, mp4 files of moving shapes with captions and questions, and images.

It takes about a minute on two cores; after an interruption the same command continues. Prints the accuracy that always
giving the most frequent answer reaches on the test questions, for each kind.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from langdc.data.records import read_records
from langdc.log import screen
from langdc.sample.dataset import IMAGES, VIDEOS, majority_chance, make_dataset
from langdc.sample.questions import GROUPS

_SMALL = {"train": 24, "test": 8, "images": 24}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the set that the arguments describe; 0 when it is there."""
    parser = argparse.ArgumentParser(prog="langdc data sample", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/sample"), help="folder to make (default: data/sample)")
    parser.add_argument("--train", type=int, help=f"training videos (default: {VIDEOS['train']})")
    parser.add_argument("--test", type=int, help=f"held-out videos (default: {VIDEOS['test']})")
    parser.add_argument("--images", type=int, help=f"training images (default: {IMAGES})")
    parser.add_argument("--small", action="store_true", help="a few files of each, to try things")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same files (default: 0)")
    parser.add_argument("--places", action="store_true", help="captions also say where each object is")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    options, out = parser.parse_args(argv), screen()
    usual = _SMALL if options.small else {**VIDEOS, "images": IMAGES}
    counts = {name: usual[name] if getattr(options, name) is None else getattr(options, name) for name in usual}
    out.print(
        f"Sample set in {options.out}: {counts['train']} training videos, {counts['test']} test videos, "
        f"{counts['images']} images (seed {options.seed})."
    )
    images = counts.pop("images")
    made = make_dataset(options.out, counts, images, options.seed, options.workers, options.places)
    out.print("Made." if made else "It is there already; nothing to do.")
    if counts["test"]:
        records = read_records(options.out / "test.jsonl")
        asked = Counter(question.kind for record in records for question in record.questions)
        table = Table("question", "asked", "majority-class chance", "target group", title="Test questions")
        for kind, chance in majority_chance(records).items():
            group = next((name for name, kinds in GROUPS.items() if kind in kinds), "")
            table.add_row(kind, str(asked[kind]), f"{chance:.3f}", group)
        out.print(table)
    return 0
