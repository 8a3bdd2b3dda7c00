"""The `langdc` command: ask a video, look at the environment."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from langdc.types import Answer
from langdc.version import __version__

SAMPLE_QUESTION = "which segment has the most objects ?"
BAR = 30


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; 0 when it worked, 2 for a user's mistake, which is told in one screen."""
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except ValueError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="langdc", description="Learned and training-free video-token compressors.")
    parser.add_argument("--version", action="version", version=f"langdc {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    ask = commands.add_parser("ask", help="ask a question about a video")
    ask.add_argument("video", nargs="?", help="a video or image file")
    ask.add_argument("question", nargs="?", help="what to ask")
    ask.add_argument("--model", help="checkpoint directory (what a training stage printed at its end)")
    ask.add_argument("--sample", action="store_true", help="try the small model that ships, on a video drawn now")
    ask.add_argument("--seed", type=int, default=0, help="which video --sample draws (default: 0)")
    ask.add_argument("--max-new-tokens", type=int, default=64, help="length limit of the reply (default: 64)")
    ask.set_defaults(run=_ask)
    doctor = commands.add_parser("doctor", help="what is installed, and what is missing")
    doctor.set_defaults(run=_doctor)
    return parser


def _ask(options: argparse.Namespace) -> int:
    from langdc.pipeline import VideoLM
    from langdc.tools.sample_clip import sample_clip

    console = Console()
    if options.sample:
        with sample_clip(options.seed) as (path, truth):
            question = options.question or options.video or SAMPLE_QUESTION
            console.print(f"A sample video (seed {options.seed}), {len(truth)} segments. Question: {question}")
            answer = VideoLM.from_pretrained(options.model or "sample:langdc").ask(
                path, question, max_new_tokens=options.max_new_tokens
            )
            _show(console, answer, truth)
        return 0
    given = {"VIDEO": options.video, "QUESTION": options.question, "--model DIR": options.model}
    if not all(given.values()):
        said = ", ".join(f"{name} {value!r}" for name, value in given.items() if value)
        raise ValueError(
            f"langdc ask needs {', '.join(given)}. Given: {said or 'nothing'}; missing: "
            f"{', '.join(name for name, value in given.items() if not value)}.\nFor example: langdc ask clip.mp4 "
            "'what happens ?' --model runs/sample/langdc/stage3. Or try: langdc ask --sample"
        )
    answer = VideoLM.from_pretrained(options.model).ask(
        options.video, options.question, max_new_tokens=options.max_new_tokens
    )
    _show(console, answer, None)
    return 0


def _show(console: Console, answer: Answer, truth: list[str] | None) -> None:
    """The answer, what each segment cost, and where the time went."""
    console.print(answer.text, style="bold green", markup=False)
    table = Table("segment", "tokens", "", "caption", box=None, pad_edge=False)
    if truth is not None:
        table.add_column("what was drawn", style="dim")
    most = max([*answer.segment_tokens, 1])
    for number, count in enumerate(answer.segment_tokens):
        said = answer.captions[number] if answer.captions is not None else ""
        row = [str(number + 1), str(count), "█" * round(BAR * count / most), said]
        table.add_row(*row, *([truth[number]] if truth is not None else []))
    console.print(table)
    stages = "  ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in answer.seconds.items())
    console.print(f"{answer.tokens} video tokens   {stages}", style="dim")


def _doctor(options: argparse.Namespace) -> int:
    from langdc.tools.doctor import check_environment

    console = Console()
    for finding in check_environment():
        console.print(str(finding), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
