"""`langdc ask`: one question about one video, with the cost of the answer."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.table import Table

from langdc.compressors import compressors
from langdc.config import MethodConfig, load
from langdc.kvcompressors import kvcompressors
from langdc.layercompressors import layercompressors
from langdc.log import screen
from langdc.pipeline import VideoLM
from langdc.sample.render import draw_video
from langdc.sample.scenes import FPS, Segment, caption, sample_video
from langdc.tools import options as shared
from langdc.tools.zoo import member_of
from langdc.types import Answer
from langdc.video import write_video

SAMPLE_MODEL = "sample:langdc"
_SAMPLE_QUESTION = "which segment has the most objects ?"
_BAR, _SHOWN_SEGMENTS = 30, 32


def main(argv: Sequence[str] | None = None) -> int:
    """Ask and print; 0 when there is an answer."""
    parser = argparse.ArgumentParser(prog="langdc ask", description=__doc__)
    parser.add_argument("video", nargs="?", help="a video or image file")
    parser.add_argument("question", nargs="?", help="the question")
    parser.add_argument("--sample", action="store_true", help="try the small model that ships, on a video drawn now")
    parser.add_argument("--seed", type=int, default=0, help="which video --sample draws (default: 0)")
    add_model(parser)
    options = parser.parse_args(argv)
    if options.sample:
        return _ask_about_sample(options)
    given = {"VIDEO": options.video, "QUESTION": options.question, "--model DIR": options.model}
    if not all(given.values()):
        said = ", ".join(f"{name} {value!r}" for name, value in given.items() if value)
        raise ValueError(
            f"langdc ask needs {', '.join(given)}. Given: {said or 'nothing'}; missing: "
            f"{', '.join(name for name, value in given.items() if not value)}.\nFor example: langdc ask clip.mp4 "
            "'what happens ?' --model runs/sample/langdc/stage3. Or try: langdc ask --sample"
        )
    _ask(options, options.model, options.video, options.question)
    return 0


def add_model(parser: argparse.ArgumentParser, required: bool = False, inside: bool = True) -> None:
    """The model that is asked, and its method; `inside`: which may be one inside the language model."""
    said = "a checkpoint: a folder, a Hugging Face id, or sample:langdc"
    parser.add_argument("--model", required=required, help=said)
    where = ", between its layers or in its cache" if inside else ""
    parser.add_argument("--compressor", help=f"a compressor by name, before the LLM{where}")
    if inside:
        parser.add_argument("--kv", help="a second one, in the cache, with the same budget")
    else:
        parser.set_defaults(kv=None)
    parser.add_argument("--config", metavar="FILE", help="all of these from a file, such as retake/mlvu_qwen2_vl")
    shared.add_method(parser)


def _ask(options: argparse.Namespace, model: str, video: Path, question: str, truth: list[str] | None = None) -> None:
    shared.check_asked(video, question, options.max_new_tokens)
    lm = VideoLM.from_pretrained(model, **method(options), **shared.place(options))
    _show(lm.ask(video, question, max_new_tokens=options.max_new_tokens), truth)


def _ask_about_sample(options: argparse.Namespace) -> int:
    """Ask about a video that is drawn for the seed, and show the caption of each of its segments."""
    question = options.question or options.video or _SAMPLE_QUESTION
    shared.check_asked(None, question, options.max_new_tokens)
    if options.seed < 0:
        raise ValueError(f"The seed is {options.seed}; give 0 or more.")
    with TemporaryDirectory() as folder:
        path, scenes = draw_sample(Path(folder), options.seed)
        screen().print(f"A sample video (seed {options.seed}), {len(scenes)} segments. Question: {question}")
        _ask(options, options.model or SAMPLE_MODEL, path, question, [caption(scene) for scene in scenes])
    return 0


def draw_sample(folder: Path, seed: int) -> tuple[Path, list[Segment]]:
    """Write the sample video of a seed into a folder; returns the file and its scenes."""
    rng = np.random.default_rng([seed, 7])
    scenes, path = sample_video(rng), folder / f"sample-{seed}.mp4"
    write_video(path, draw_video(scenes, rng), FPS)
    return path, scenes


def method(options: argparse.Namespace) -> dict[str, Any]:
    """What was given by `add_model`, but for the model, as keywords of `VideoLM.from_pretrained`."""
    if options.config:
        names = ("compressor", "kv", "keep", "tokens", "backbone", "frames", "select", "sample")
        given = [f"--{name}" for name in names if getattr(options, name, None) not in (None, False)]
        if given:
            raise ValueError(f"--config {options.config} sets the whole method; leave out {', '.join(given)}.")
        return load(MethodConfig, options.config).arguments
    budget = shared.budget(options)
    if budget and not (options.compressor or options.kv):
        raise ValueError(f"A budget {budget} needs a compressor: add --compressor NAME. See: langdc compressors")
    chosen = member_of(options.compressor, budget) if options.compressor else {}
    if options.kv:
        if "kv" in chosen:
            raise ValueError(f"--compressor {options.compressor} works in the cache already; leave out --kv.")
        name = options.kv.removeprefix("kv:")
        if name not in kvcompressors.names() and (name in compressors.names() or name in layercompressors.names()):
            raise ValueError(f"Unknown kvcompressor {name!r}. It works elsewhere; give it by --compressor.")
        chosen["kv"] = {"name": name, **budget}
    return {**chosen, **shared.selector(options), "backbone": shared.backbone(options)}


def _show(answer: Answer, truth: list[str] | None = None) -> None:
    """Print the answer, the tokens of each segment and the seconds of each stage."""
    console = screen(soft_wrap=False)
    console.print(answer.text, style="bold green")
    table = Table("segment", "tokens", "", "caption", box=None, pad_edge=False)
    if truth is not None:
        table.add_column("what was drawn", style="dim")
    largest = max([*answer.segment_tokens, 1])
    for index, count in enumerate(answer.segment_tokens[:_SHOWN_SEGMENTS]):
        written = answer.captions[index] if answer.captions is not None else ""
        drawn = [truth[index]] if truth is not None else []
        table.add_row(str(index + 1), str(count), "█" * round(_BAR * count / largest), written, *drawn)
    console.print(table)
    if len(answer.segment_tokens) > _SHOWN_SEGMENTS:
        console.print(f"... and {len(answer.segment_tokens) - _SHOWN_SEGMENTS} more segments", style="dim")
    stages = "  ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in answer.seconds.items())
    before = f" of {answer.tokens_before}" if answer.tokens_before else ""
    console.print(f"{answer.tokens}{before} video tokens   {stages}", style="dim")
    if (keys := answer.keys_per_layer) is not None:
        console.print(f"{min(keys)} to {max(keys)} keys per layer after reading, text included", style="dim")
