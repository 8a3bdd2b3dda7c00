"""`langdc demo`: a page to try a model: a video, a question, and the answers of two methods side by side."""

import argparse
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from langdc.failures import told
from langdc.log import screen
from langdc.pipeline import VideoLM
from langdc.sample.questions import ask_all
from langdc.text import render
from langdc.timing import STAGES
from langdc.tools import options as shared
from langdc.tools.ask import SAMPLE_MODEL, draw_sample
from langdc.tools.compare import Compared, asked, strip, training_free, with_method
from langdc.video import jpeg_url

_ALL, _OWN = "identity", ""
_SAMPLES, _SHOWN_SEGMENTS, _LEAST = 4, 32, 0.05
_SECOND = ("vidcom2", "snapkv")  # in the second column at first: the first of them that serves the model
_CSS = """
.gradio-container { overflow-x: clip; }
.gradio-container .main { max-width: 84rem; margin: 0 auto; padding: 1.5rem 1rem; }
.html-container { padding: 0 !important; }
button[aria-label^="Trim"], button[aria-label^="Reset video"] { display: none; } /* needs a program from elsewhere */
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; 0 then."""
    parser = argparse.ArgumentParser(prog="langdc demo", description=__doc__)
    said = f"a checkpoint: a folder, a Hugging Face id, sample:NAME, or sample for {SAMPLE_MODEL} (default)"
    parser.add_argument("--model", default="sample", help=said)
    parser.add_argument("--compressor", help="the method in the second column when the page opens")
    parser.add_argument("--keep", type=float, default=0.25, help="share of tokens that is kept then (default: 0.25)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    shared.add_reading(parser)
    options = parser.parse_args(argv)
    if not _LEAST <= options.keep <= 1:
        raise ValueError(f"--keep {options.keep}: give {_LEAST} to 1.")
    shared.check_asked(None, "", options.max_new_tokens)
    _check_address(options.host, options.port)
    options.model = SAMPLE_MODEL if options.model == "sample" else options.model
    gradio = _gradio()
    with TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # videos that were dropped go when the command ends
        samples = _draw_samples(Path(folder))
        console = screen(soft_wrap=False)
        with console.status(f"loading {options.model} ..."):
            given = {**shared.selector(options), **shared.place(options), "backbone": shared.backbone(options)}
            lm = VideoLM.from_pretrained(options.model, **given)
            # the first call is slower than the others
            lm.ask(*samples[0], max_new_tokens=1)
        page = _build(gradio, lm, samples, options)
        where = {"server_name": options.host, "server_port": options.port, "inbrowser": options.open}
        theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        theme.set(body_text_color_subdued="#5b6675", body_text_color_subdued_dark="#98a3b3")
        alone = {"quiet": True, "share": False, "ssr_mode": False, "footer_links": [], "prevent_thread_lock": True}
        _, address, _ = page.launch(**where, **alone, theme=theme, css=_CSS)
        with suppress(KeyboardInterrupt):
            console.print(f"The page is at {address} until Ctrl-C.", soft_wrap=True)
            threading.Event().wait()
        page.close(verbose=False)
    return 0


def _check_address(host: str, port: int | None) -> None:
    """ValueError where the page cannot be served: Gradio would try a hundred ports, even on an unknown host."""
    try:
        socket.create_server((host, port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        given = f"--host {host}" + f" --port {port}" * (port is not None)
        raise ValueError(f"{given}: the page cannot be served there ({error}). Give another host or port.") from None


def _methods(lm: VideoLM) -> dict[str, str]:
    """The methods that serve the model, its own first: names for `_answers`, by the labels that the page shows."""
    own = lm.model.config.compressor.name
    found = {"all tokens" if own == _ALL else f"{own}, as trained": _OWN}
    for name in [*([] if own == _ALL else [_ALL]), *training_free()]:
        with suppress(ValueError):  # it cannot serve this model
            _with(lm, name, 1.0)
            found["all tokens" if name == _ALL else name] = name
    return found


def _with(lm: VideoLM, name: str, keep: float) -> VideoLM:
    return lm if name == _OWN else with_method(lm, name, {} if name == _ALL else {"keep": keep})


def _answers(
    lm: VideoLM, path: str | None, question: str, names: Mapping[str, str], keep: float, **generation: Any
) -> tuple[Tensor, list[Compared]]:
    """Ask about a file with each of `names` (of `_methods`); returns its frames [T',3,height,width] and the answers.

    It is decoded and encoded once. An error of one method is its `trouble`; ValueError for what stops all of them.
    """
    if not path:
        raise ValueError("There is no video. Drop a file, or choose a sample.")
    if not question.strip():
        raise ValueError("The question is empty; ask something.")
    shared.check_asked(path, question, max_new_tokens=1)
    found: dict[str, Compared] = {}
    built: dict[str, VideoLM] = {}
    for label, name in names.items():
        try:
            built[label] = _with(lm, name, keep)
        except ValueError as error:
            found[label] = Compared(label, trouble=told(error))
    need = frozenset().union(*(other.compressor.needs for other in built.values()))
    video = lm.open(path, question=question, need=need)
    for label, other in built.items():
        try:
            found[label] = asked(label, other, video, question, **generation)
        except Exception as error:  # such as no memory left; the other method may need less
            found[label] = Compared(label, trouble=told(error))
    assert video.frames is not None
    return video.frames.pixels, [found[label] for label in names]


class _Segment(NamedTuple):
    """A segment as it is shown: its frames as a data URL, its number of tokens, and its caption or ""."""

    frames: str
    tokens: int
    caption: str


def _segments(frames: Tensor, one: Compared) -> list[_Segment]:
    """The segments of an answer, at most the first 32, dark where patches were dropped."""
    assert one.answer is not None
    counts, captions = one.answer.segment_tokens, one.answer.captions
    kept = torch.ones(one.steps * len(counts), 1, 1) if one.kept is None else one.kept
    found = []
    for number, tokens in enumerate(counts[:_SHOWN_SEGMENTS]):
        steps = range(len(kept))[number * one.steps : (number + 1) * one.steps]
        first, last = (place * len(frames) // len(kept) for place in (steps.start, steps.stop))
        picture = strip(frames[first : max(last, first + 1)], kept[steps.start : steps.stop])
        found.append(_Segment(jpeg_url(picture, quality=85), tokens, captions[number] if captions else ""))
    return found


def _shown(frames: Tensor, found: Sequence[Compared]) -> str:
    """The answers as HTML, one beside the other; `demo.html` is the template."""
    columns = [(one, _segments(frames, one) if one.answer else []) for one in found]
    seconds = [one.answer.seconds for one in found if one.answer]
    longest = max((value for each in seconds for value in each.values()), default=1.0)
    stages = [name for name in STAGES if any(name in each for each in seconds)]
    return render("langdc", "tools/demo.html", columns=columns, stages=stages, longest=longest)


def _respond(lm: VideoLM, path: str | None, question: str, names: Mapping[str, str], keep: float, length: int) -> str:
    """The answers as HTML, or the sentence that says why there are none."""
    try:
        return _shown(*_answers(lm, path, question, names, keep, max_new_tokens=length))
    except Exception as error:
        said = told(error)
        return render("langdc", "tools/demo.html", trouble=said.replace(path, Path(path).name) if path else said)


def _gradio() -> Any:
    """The package, without its telemetry; ValueError where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("langdc demo needs gradio, which is not installed: pip install 'langdc[demo]'") from None
    return gradio


def _draw_samples(folder: Path) -> list[tuple[str, str]]:
    """Write a few sample videos into a folder: each file, and a question about it."""
    found = []
    for seed in range(_SAMPLES):
        path, scenes = draw_sample(folder, seed)
        questions = ask_all(np.random.default_rng(seed), scenes)
        found.append((str(path), questions[seed % len(questions)].text))
    return found


def _build(gradio: Any, lm: VideoLM, samples: list[tuple[str, str]], options: argparse.Namespace) -> Any:
    """The page: its controls, and what they do."""
    known = _methods(lm)
    labels = list(known)
    second = options.compressor or next((name for name in _SECOND if name in known), labels[0])
    if second not in known:
        raise ValueError(f"--compressor {second}: the methods for this model are {', '.join(labels)}.")

    def ask(path: str | None, question: str, one: str, other: str, keep: float) -> str:
        names = {label: known[label] for label in (one, other)}
        return _respond(lm, path, question, names, keep, options.max_new_tokens)

    with gradio.Blocks(title="LangDC demo", analytics_enabled=False) as page:
        gradio.HTML(render("langdc", "tools/demo.html", model=options.model))
        with gradio.Row():
            with gradio.Column(min_width=280):
                video = gradio.Video(samples[0][0], label="Video", sources=["upload"], height=240, buttons=[])
                files = [[path] for path, _ in samples]
                chosen = gradio.Dataset(components=[video], samples=files, label="Sample videos", type="index")
            with gradio.Column(min_width=280):
                question = gradio.Textbox(samples[0][1], label="Question", max_lines=3)
                with gradio.Row():
                    one = gradio.Dropdown(labels, value=labels[0], label="Method", min_width=200)
                    other = gradio.Dropdown(labels, value=second, label="Compared with", min_width=200)
                said = "Share of the tokens that training-free methods keep"
                keep = gradio.Slider(_LEAST, 1, options.keep, step=0.05, label=said)
                button = gradio.Button("Ask", variant="primary")
        found = gradio.HTML(apply_default_css=False)
        chosen.select(lambda number: samples[number], chosen, [video, question])
        gradio.on([button.click, question.submit], ask, [video, question, one, other, keep], found, api_name="ask")
    return page
