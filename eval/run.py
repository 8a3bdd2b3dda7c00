"""python eval/run.py --config configs/sample/eval.yaml [key=value ...]

Ask the models of a config's rows the questions of its task and write every answer to the output folder; `eval/table.py`
makes tables and a page of that. The same command goes on after an interruption and does nothing when all is done.
Settings are overridden as output=runs/mine, limit=20 or rows.langdc.model=runs/other (a row by number or name).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from langdc.config import EvalConfig, load
from langdc.evaluation import tasks
from langdc.evaluation.loop import evaluate, failures


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; 0 when every answer was made, 1 when some failed, 2 for a mistake in settings, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    options = _parser().parse_intermixed_args(argv)
    try:
        config = load(EvalConfig, options.config, options.overrides)
        task = tasks.build(config.task.name, **config.task.settings)
        folder = evaluate(config, task, command=["python", "eval/run.py", *argv])
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    except ValueError as error:
        if options.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = failures(folder)
    if failed:
        print(
            f"{failed} answers failed and count as wrong; their reasons are in {folder.directory}/rows.",
            file=sys.stderr,
        )
    print(f"All rows are in {folder.directory}. Look at them: python eval/table.py {folder.directory}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eval/run.py", description="Evaluate models on a task; the same command goes on after an interruption."
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted, as limit=20")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/sample/eval.yaml"), help="settings (default: %(default)s)"
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    return parser


if __name__ == "__main__":
    sys.exit(main())
