"""The `langdc` command: ask a video, compare compressors, list them, plan a training, look at the environment."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from langdc.config import MethodConfig, load
from langdc.jsonl import write_text
from langdc.types import Answer
from langdc.version import __version__

SAMPLE_QUESTION = "which segment has the most objects ?"
BAR, SHOWN_SEGMENTS = 30, 32


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
    ask.add_argument("--compressor", help="a compressor by name, before the LLM or in its cache (see: compressors)")
    ask.add_argument("--kv", help="a second one, in the cache, with the same budget")
    ask.add_argument("--config", metavar="FILE", help="all of these from a file, such as configs/retake/*.yaml")
    _add_budget(ask)
    _add_backbone(ask)
    ask.set_defaults(run=_ask)
    compare = commands.add_parser("compare", help="ask with several compressors, and show what each kept")
    compare.add_argument("video", help="a video or image file")
    compare.add_argument("question", help="what to ask")
    compare.add_argument("--model", required=True, help="checkpoint directory, ours or a stock model's")
    compare.add_argument("--compressors", nargs="+", metavar="NAME", help="which ones (default: all without training)")
    compare.add_argument("--max-new-tokens", type=int, default=64, help="length limit of the replies (default: 64)")
    compare.add_argument("--out", default="compare.html", help="the page to write (default: compare.html)")
    _add_budget(compare)
    _add_backbone(compare)
    compare.set_defaults(run=_compare)
    zoo = commands.add_parser("compressors", help="list all compressors")
    zoo.set_defaults(run=_compressors)
    planner = commands.add_parser("plan", help="what a training stage will take: tokens, memory, steps, hours")
    planner.add_argument("config", help="a stage's settings, such as configs/sample/langdc/stage2.yaml")
    planner.add_argument("overrides", nargs="*", metavar="key=value", help="dotted, as phases.density.batch_size=4")
    planner.add_argument("--gpus", type=int, default=1, help="devices that share the work (default: 1)")
    planner.add_argument("--memory", type=float, metavar="GIB", help="of one device: what fits, and what to change")
    planner.add_argument("--samples", type=int, help="records of each phase whose files are not here")
    planner.add_argument("--probe", action="store_true", help="run a few real steps here, for the hours")
    planner.set_defaults(run=_plan)
    doctor = commands.add_parser("doctor", help="what is installed, and what is missing")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", type=float, help="fraction of the visual tokens kept, such as 0.25")
    parser.add_argument("--tokens", type=int, help="how many visual tokens are kept, in place of --keep")


def _add_backbone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", help="for stock models: a backbone by name, such as llava_video")
    parser.add_argument("--frames", type=int, help="for stock models: how many frames are looked at")


def _budget(options: argparse.Namespace) -> dict:
    given = {"keep": options.keep, "tokens": options.tokens}
    return {name: value for name, value in given.items() if value is not None}


def _backbone(options: argparse.Namespace) -> dict:
    given = {"name": options.backbone, "frames": options.frames}
    return {name: value for name, value in given.items() if value is not None}


def _chosen(options: argparse.Namespace) -> dict:
    """What `--compressor` and `--kv` ask for, as keywords of `VideoLM.from_pretrained`."""
    from langdc.tools.compare import resolved

    budget = _budget(options)
    if budget and not (options.compressor or options.kv):
        raise ValueError(f"A budget {budget} needs a compressor: add --compressor NAME. See: langdc compressors")
    chosen = resolved(options.compressor, budget) if options.compressor else {}
    if options.kv:
        if "kv" in chosen:
            raise ValueError(f"--compressor {options.compressor} works in the cache already; leave out --kv.")
        chosen["kv"] = {"name": options.kv, **budget}
    return chosen


def _from_file(options: argparse.Namespace) -> dict:
    """What `--config` asks for, as keywords of `VideoLM.from_pretrained`."""
    names = ("compressor", "kv", "keep", "tokens", "backbone", "frames", "sample")
    given = [f"--{name}" for name in names if getattr(options, name) not in (None, False)]
    if given:
        raise ValueError(f"--config {options.config} sets the whole method; leave out {', '.join(given)}.")
    return load(MethodConfig, options.config).arguments


def _compressors(options: argparse.Namespace) -> int:
    from langdc.tools.zoo import entries

    table = Table("name", "site", "needs", "backbones", "variants", "paper", box=None, pad_edge=False)
    table.columns[0].no_wrap = True  # names are copied from here
    found = entries()
    for entry in found:
        table.add_row(
            entry.name, entry.site, entry.needs, entry.backbones, " ".join(entry.variants) or "-", entry.paper
        )
    console = Console()
    console.print(table)
    console.print(
        f"{len(found)} compressors. Try one: langdc ask VIDEO QUESTION --model DIR --compressor NAME --keep 0.25"
    )
    return 0


def _compare(options: argparse.Namespace) -> int:
    from langdc.pipeline import VideoLM
    from langdc.tools.compare import compare, page, training_free

    budget = _budget(options)
    if len(budget) != 1:
        raise ValueError(f"langdc compare needs --keep or --tokens, one of them; given: {budget or 'neither'}.")
    names = options.compressors or training_free()
    console = Console()
    table = Table("compressor", "tokens", "ms", "answer", box=None, pad_edge=False)
    found = []
    with console.status("asking ..."):
        video = VideoLM.from_pretrained(options.model, backbone=_backbone(options)).open(options.video)
        for one in compare(video, options.question, budget, names, max_new_tokens=options.max_new_tokens):
            found.append(one)
            said = one.trouble if one.answer is None else one.answer.text
            costs = ["-", "-"] if one.answer is None else [str(one.answer.tokens), f"{one.milliseconds:.0f}"]
            table.add_row(one.name, *costs, said, style="dim" if one.answer is None else "")
    console.print(table)
    assert video.frames is not None and found[0].answer is not None
    before = found[0].answer.tokens_before
    text = page(Path(options.video).name, options.question, video.frames.pixels, found, before)
    write_text(Path(options.out), text)
    console.print(f"What each one kept: {options.out}")
    return 0


def _ask(options: argparse.Namespace) -> int:
    from langdc.pipeline import VideoLM
    from langdc.tools.sample_clip import sample_clip

    chosen = _from_file(options) if options.config else {**_chosen(options), "backbone": _backbone(options)}
    console = Console()
    if options.sample:
        with sample_clip(options.seed) as (path, truth):
            question = options.question or options.video or SAMPLE_QUESTION
            console.print(f"A sample video (seed {options.seed}), {len(truth)} segments. Question: {question}")
            answer = VideoLM.from_pretrained(options.model or "sample:langdc", **chosen).ask(
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
    answer = VideoLM.from_pretrained(options.model, **chosen).ask(
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
    for number, count in enumerate(answer.segment_tokens[:SHOWN_SEGMENTS]):
        said = answer.captions[number] if answer.captions is not None else ""
        row = [str(number + 1), str(count), "█" * round(BAR * count / most), said]
        table.add_row(*row, *([truth[number]] if truth is not None else []))
    console.print(table)
    if len(answer.segment_tokens) > SHOWN_SEGMENTS:
        console.print(f"... and {len(answer.segment_tokens) - SHOWN_SEGMENTS} more segments", style="dim")
    stages = "  ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in answer.seconds.items())
    kept = f" of {answer.tokens_before}" if answer.tokens_before else ""
    console.print(f"{answer.tokens}{kept} video tokens   {stages}", style="dim")
    if answer.keys_per_layer is not None:
        held = answer.keys_per_layer
        console.print(f"{min(held)} to {max(held)} keys per layer after reading, text included", style="dim")


def _plan(options: argparse.Namespace) -> int:
    from langdc.config import StageConfig
    from langdc.tools.plan import plan, probe
    from langdc.tools.plan_page import show

    if options.gpus < 1 or (options.memory is not None and options.memory <= 0):
        raise ValueError(
            f"--gpus {options.gpus} --memory {options.memory}: give at least 1 device and more than 0 GiB."
        )
    config = load(StageConfig, options.config, options.overrides)
    console = Console()
    probed = probe(config) if options.probe else None
    show(console, plan(config, options.gpus, options.memory, options.samples), options.gpus, options.memory, probed)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from langdc.tools.doctor import check_environment

    console = Console()
    for finding in check_environment():
        console.print(str(finding), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
