"""The `langdc` command: a table of subcommands, of which only the one that is asked for is imported."""

import argparse
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from langdc import __version__
from langdc.configfiles import check_source, find_config


class _Command(NamedTuple):
    """A subcommand: its words, one line of help, and "module:function", which takes the arguments after the words."""

    words: str
    help: str
    target: str


COMMANDS = (
    _Command("ask", "ask a question about a video", "langdc.tools.ask:main"),
    _Command("compare", "ask with several compressors, show the patches each one kept", "langdc.tools.compare:main"),
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

    LANGDC_TRACEBACK=1 raises errors instead.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((each for each in COMMANDS if words[: len(each.words.split())] == each.words.split()), None)
    if command is None:
        return _without_command(words)
    module, _, function = command.target.partition(":")
    try:
        arguments = words[len(command.words.split()) :]
        _check_names(command.words, arguments)
        return getattr(importlib.import_module(module), function)(arguments)
    except KeyboardInterrupt:
        print("Interrupted. The same command resumes from what is complete.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        code = _exit_code(error)
        if code is None or os.environ.get("LANGDC_TRACEBACK"):
            raise
        rank = os.environ.get("RANK", "0")
        process = f"[process {rank}] " if rank != "0" else ""
        print(f"{process}error: {_message(error)}", file=sys.stderr)
        return code


def _check_names(command: str, arguments: list[str]) -> None:
    """ValueError for a model or a config that is not there, before the seconds that it takes to import torch."""
    given = dict(itertools.pairwise(arguments))
    first = next(iter(arguments), "--")
    model = given.get("--model", first if command == "export" else "--")
    config = given.get("--config", first if command in ("train", "eval", "plan") else "--")
    if "/" in model and ":" not in model:
        check_source(model)
    if not config.startswith("-") and "=" not in config:
        find_config(config)


def door(words: str) -> Callable[..., int]:
    """The `main(argv=None)` of a script that does the same as a subcommand."""
    return lambda argv=None: main([*words.split(), *(sys.argv[1:] if argv is None else argv)])


def _exit_code(error: Exception) -> int | None:
    """2: a mistake in what was given, or a damaged file; 3: a file that cannot be read or written; None: a bug."""
    if isinstance(error, OSError):
        return 3
    damaged = ("SafetensorError", "UnpicklingError", "BadZipFile", "YAMLError", "OutOfMemoryError")
    named = {cls.__name__ for cls in type(error).__mro__}
    return 2 if isinstance(error, ValueError | RecursionError) or named & set(damaged) else None


def _message(error: Exception) -> str:
    """The message in words, with the name of the file where the error knows it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    if isinstance(error, RecursionError):
        return f"A file is nested too deeply to be read ({error})."
    return str(error).strip() or type(error).__name__


def _without_command(words: list[str]) -> int:
    """Show the list of commands, or say that there is none of this name."""
    group = [each for each in COMMANDS if words and each.words.startswith(f"{words[0]} ")]
    commands = group or COMMANDS
    width = max(len(each.words) for each in commands)
    listed = "\n".join(["commands:", *(f"  {each.words:{width}}  {each.help}" for each in commands)])
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
