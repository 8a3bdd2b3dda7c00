"""The `langdc` command: a table of subcommands, of which only the one that is asked for is imported."""

import argparse
import importlib
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from langdc import __version__
from langdc.configfiles import check_source, find_config
from langdc.failures import guarded


class _Command(NamedTuple):
    """A subcommand: its words, one line of help, and "module:function", which takes the arguments after the words."""

    words: str
    help: str
    target: str


COMMANDS = (
    _Command("ask", "ask a question about a video", "langdc.tools.ask:main"),
    _Command("compare", "ask with several compressors, show the patches each one kept", "langdc.tools.compare:main"),
    _Command("demo", "a page to try a model, two methods side by side", "langdc.tools.demo:main"),
    _Command("embed", "write what the language model reads of a video and a question", "langdc.tools.embed:main"),
    _Command("probe", "linear probes: what a compressor's tokens keep about objects", "langdc.tools.probe:main"),
    _Command("compressors", "list all compressors", "langdc.tools.zoo:main"),
    _Command("train", "train a config, or several in order", "langdc.train.run:main"),
    _Command("eval", "evaluate the models of a config on its task", "langdc.evaluate:main"),
    _Command("report", "tables, plots and a page of evaluations", "langdc.evaluate:report"),
    _Command("plan", "the tokens, memory, steps and hours that a training takes", "langdc.tools.plan:main"),
    _Command("data sample", "make the sample data set", "langdc.prepare.sample:main"),
    _Command("data check", "find what is wrong with a data set", "langdc.prepare.checking:main"),
    _Command("data preview", "a page of records as a training reads them", "langdc.prepare.preview:main"),
    _Command("data features", "store encoder outputs of a data set", "langdc.prepare.features:main"),
    _Command("data caption", "write captions of the segments of videos", "langdc.prepare.caption:main"),
    _Command("data mix", "check published training sets and write them as records", "langdc.prepare.mix:main"),
    _Command("data import", "write records from a data set in another format", "langdc.prepare.importing:main"),
    _Command("data benchmark", "check the folder of a benchmark", "langdc.prepare.benchmark:main"),
    _Command("convert internvideo2", "InternVideo2-stage2's published weights", "langdc.convert.internvideo2:main"),
    _Command("convert langdc", "LangDC's release", "langdc.convert.assemble:main_langdc"),
    _Command("convert llava_video", "a LLaVA-Video checkpoint", "langdc.convert.llava_video:main"),
    _Command("convert videogpt_plus", "VideoGPT+'s release", "langdc.convert.assemble:main_videogpt_plus"),
    _Command("export", "write a checkpoint as plain Hugging Face directories", "langdc.convert.export:main"),
    _Command("config-schema", "the JSON schema of config files, for editors", "langdc.tools.schema:main"),
    _Command("doctor", "what is installed, and what is missing", "langdc.tools.doctor:main"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand: its exit code, or that of docs/failures.md for an error, which is printed as one line.

    With --traceback, or LANGDC_TRACEBACK=1, it is also shown where the error arose.
    """
    return guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(words: list[str], **more: str) -> int:
    command = next((each for each in COMMANDS if words[: len(each.words.split())] == each.words.split()), None)
    if command is None:
        return _without_command(words)
    module, _, function = command.target.partition(":")
    arguments = words[len(command.words.split()) :]
    _check_names(command.words, arguments)
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"Loading langdc {command.words} ...", file=sys.stderr, flush=True)
    return getattr(importlib.import_module(module), function)(arguments, **more)


def _check_names(command: str, arguments: list[str]) -> None:
    """ValueError for a model or a config that is not there, before the seconds that it takes to import torch."""
    given = dict(itertools.pairwise(arguments))
    first = next(iter(arguments), "--")
    model = given.get("--model", first if command in ("export", "probe") else "--")
    config = given.get("--config", first if command in ("train", "eval", "plan") else "--")
    if "/" in model and ":" not in model and "--endpoint" not in given:
        check_source(model)
    if not config.startswith("-") and "=" not in config:
        find_config(config)


def door(words: str, **more: str) -> Callable[..., int]:
    """The `main(argv=None)` of a script that does the same as a subcommand; `more` is given to its function."""
    head = words.split()
    return lambda argv=None: guarded(lambda rest: _run([*head, *rest], **more), sys.argv[1:] if argv is None else argv)


def _without_command(words: list[str]) -> int:
    """Show the list of commands, or say that there is none of this name."""
    group = [each for each in COMMANDS if words and each.words.startswith(f"{words[0]} ")]
    commands = group or COMMANDS
    width = max(len(each.words) for each in commands)
    listed = "\n".join(["commands:", *(f"  {each.words:{width}}  {each.help}" for each in commands)])
    listed += "\n\n--traceback after any of them shows where in the code an error arose."
    parser = argparse.ArgumentParser(
        prog="langdc",
        usage=f"langdc {words[0] if group else 'COMMAND'} ...",
        description="Train, evaluate and use learned and training-free compressors of video tokens.",
        epilog=listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"langdc {__version__}")
    rest = words[1:] if group else words
    if rest and not rest[0].startswith("-"):
        parser.error(f"There is no command {' '.join(words[: 2 if group else 1])!r}.\n{listed}")
    if not rest and not group:
        parser.error(f"Give a command.\n{listed}")
    parser.parse_args(rest)
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
