"""python eval/run.py --config configs/sample/eval.yaml [key=value ...]

Ask the models of a config's rows the questions of its task and write every answer to the output folder; `eval/table.py`
makes tables and a page of that. The same command goes on after an interruption and does nothing when all is done.
Settings are overridden as output=runs/mine, limit=20 or rows.langdc.model=runs/other (a row by number or name).
Several processes share the videos: torchrun --nproc-per-node 2 eval/run.py --config ...
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from langdc import distributed
from langdc.config import load
from langdc.distributed import is_main_process
from langdc.evaluation import tasks
from langdc.evaluation.gate import check_published
from langdc.evaluation.judge import open_judge, unjudged
from langdc.evaluation.loop import evaluate, failures
from langdc.evaluation.settings import EvalConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; 0 when all is done, 1 when an answer failed or awaits the judge, 2 for a mistake in settings.

    3 when files cannot be read or written, such as on a full disk; 130 when interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    options = _parser().parse_intermixed_args(argv)
    try:
        distributed.start()
        config = load(EvalConfig, options.config, options.overrides)
        task = tasks.build(config.task.name, **config.task.settings)
        check_published(config, task)
        judge = open_judge(config.judge, task, config.output)
        folder = evaluate(
            config, task, command=["python", "eval/run.py", *argv], judge=judge, retry_failed=options.retry_failed
        )
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, ValueError):
            return 2
        print("What is written stays; once that is solved, the same command goes on from there.", file=sys.stderr)
        return 3
    failed = failures(folder)
    if not is_main_process():
        return 1 if failed else 0
    if failed:
        print(
            f"{failed} answers failed and count as wrong; their reasons are in {folder.directory}/rows. "
            "Once they are dealt with, --retry-failed asks again.",
            file=sys.stderr,
        )
    waiting = unjudged(folder, config.judge) if config.judge is not None else 0
    if waiting:
        print(f"{waiting} answers are not judged yet. They stay; the same command asks again.", file=sys.stderr)
    print(f"All rows are in {folder.directory}. Look at them: python eval/table.py {folder.directory}")
    return 1 if failed or waiting else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eval/run.py", description="Evaluate models on a task; the same command goes on after an interruption."
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted, as limit=20")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/sample/eval.yaml"), help="settings (default: %(default)s)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="ask again what failed before")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    return parser


if __name__ == "__main__":
    sys.exit(main())
